"""Every rule of Table 1 and every ablation of Figures 5 and 6: a preset of cppo_verl and what is changed on it.

``python -m recipe.methods NAME`` prints the overrides of one, a line each; run_scripts/train.sh asks so. Knobs that
differ from model to model (Table 3) come from the environment: DELTA, DELTA_B, W_MIN, BUDGET.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

KNOB = "actor_rollout_ref.actor.policy_loss."
TABLE_3 = {"delta": "DELTA", "delta_b": "DELTA_B", "w_min": "W_MIN", "budget": "BUDGET"}  # knob: variable
# The authors' public verl code where it differs from the paper (FOLLOW=scripts).
SCRIPTS = {KNOB + "horizon": "max", KNOB + "budget_cap": "5", "algorithm.norm_adv_by_std_in_grpo": "False"}


@dataclass(frozen=True)
class Method:
    """A preset, one line for a reader, the knobs it takes from Table 3, and knobs changed after those.

    ``estimator`` of D_t: None takes ESTIMATOR, "" is for a rule that has no D_t.
    """

    preset: str
    what: str
    table_3: tuple[str, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)
    estimator: str | None = None


ALL, DELTA = tuple(TABLE_3), ("delta",)
TABLE_1 = {
    "grpo": Method("grpo", "GRPO with Clip-Higher", estimator=""),
    "minpro": Method("minpro", "MinPRO", estimator=""),
    "cispo": Method("cispo", "CISPO", estimator=""),
    "dppo": Method("dppo_tv", "DPPO, one threshold for every token", DELTA),
    "trm_max": Method("trm_max", "TRM-Max, whole responses by their largest KL"),
    "trm_avg": Method("trm_avg", "TRM-Avg, whole responses by their mean KL"),
    "cppo": Method("cppo", "CPPO", ALL),
}
ABLATIONS = {
    "cppo_weights_only": Method("cppo", "CPPO without prefix budget", ("delta", "w_min"), {"budget": "none"}),
    "cppo_budget_only": Method(
        "cppo", "CPPO without position weights", ("delta", "delta_b", "budget"), {"weights": "constant"}
    ),
    "cppo_shuffled": Method("cppo", "CPPO, weights permuted in each response", ALL, {"weights": "shuffled"}),
    "cppo_soft": Method("cppo", "CPPO, soft gate (Appendix C)", ALL, {"gate": "soft"}),
    # the KL thresholds are the presets'
    "cppo_kl": Method("cppo_kl", "CPPO on KL, delta 0.1, delta_b 0.002", ("w_min", "budget")),
    "dppo_kl": Method("dppo_kl", "DPPO on KL, delta 0.1"),
    "trm_max_avg": Method(
        "trm_max", "TRM Max&Avg, 0.1 and 0.002", changed={"loss_mode": "trm_max_avg", "delta_b": "0.002"}
    ),
    "cppo_binary": Method("cppo", "CPPO on the binary divergence", ALL, estimator="binary"),
    "dppo_binary": Method("dppo_tv", "DPPO on the binary divergence", DELTA, estimator="binary"),
    # Which values the paper's sensitivity panels use is not in the material at hand: these bracket Table 3's.
    **{
        f"cppo_{knob}_{value}": Method("cppo", f"CPPO, {knob} = {value}", ALL, {knob: value})
        for knob, values in {"delta_b": "0.010 0.015 0.020 0.030", "w_min": "0.6 0.7 0.8 0.9"}.items()
        for value in values.split()
    },
}
# Not in the paper; docs/rules.md has a section for each.
RELATIVES = {
    "cppo_restore": Method("cppo_restore", "CPPO, what breaks a constraint pulled back at 0.3", ALL),
    "dppo_restore": Method("dppo_restore", "DPPO, what breaks the threshold pulled back at 0.3", DELTA),
    "nfpo": Method("nfpo", "NFPO's forward trace of 4 tokens on DPPO's mask", DELTA),
    "gbpo": Method("gbpo", "GBPO, ratios pulled toward 1 +- 0.3", estimator=""),
    "gspo": Method("gspo", "GSPO, verl's own", estimator=""),
    "sapo": Method("sapo", "SAPO, verl's own", estimator=""),
}
METHODS = {**TABLE_1, **ABLATIONS, **RELATIVES}
CHOICES = {"METHOD": tuple(METHODS), "ESTIMATOR": ("topk", "binary"), "FOLLOW": ("paper", "scripts")}


def overrides(name: str, environment: Mapping[str, str]) -> list[str]:
    """Hydra overrides of a method.

    Args:
        environment: DELTA, DELTA_B, W_MIN, BUDGET of the model; ESTIMATOR (``topk``, the paper's main results, or
            ``binary``) and FOLLOW (``paper`` or ``scripts``), both optional.

    Raises:
        ValueError: a name outside its list; the message holds the list.
    """
    chosen = {"METHOD": name, "ESTIMATOR": "topk", "FOLLOW": "paper"}
    chosen |= {variable: environment[variable] for variable in ("ESTIMATOR", "FOLLOW") if variable in environment}
    for variable, allowed in CHOICES.items():
        if chosen[variable] not in allowed:
            raise ValueError(f"{variable}={chosen[variable]!r} is not one of: {' '.join(allowed)}")
    method = METHODS[name]
    knobs = {knob: environment[TABLE_3[knob]] for knob in method.table_3}
    if method.estimator != "":
        knobs["estimator"] = method.estimator or chosen["ESTIMATOR"]
    settings = {KNOB + knob: value for knob, value in {**knobs, **method.changed}.items()}
    if chosen["FOLLOW"] == "scripts":
        settings.update(SCRIPTS)
    return [f"+trust_region={method.preset}", *(f"{key}={value}" for key, value in settings.items())]


if __name__ == "__main__":  # without a name, all of them with their meaning
    try:
        lines = [f"{name:20} {method.what}" for name, method in METHODS.items()]
        print("\n".join(overrides(sys.argv[1], os.environ) if len(sys.argv) > 1 else lines))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
