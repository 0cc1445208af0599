"""What will train, in a few lines before anything starts, and what a command line contradicts.

A preset is put in front of a command line that was written without it, and the command line wins. So each key of the
preset that it took over is told, with what follows from it. Where both cannot be meant, the run is refused instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cppo_verl import presets
from cppo_verl.integration import skip
from cppo_verl.integration.alarms import GAP
from cppo_verl.launch import sizes
from cppo_verl.launch.overrides import parse
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import KEY_PREFIX, idle_knobs, knob_names
from cppo_verl.trust_region.rules import VERL_LOSSES, capability, knobs_of_rule

FILE = "start.txt"  # in the run directory, or in Hydra's output folder where there is none
ACTOR, OPTIONS = "actor_rollout_ref.actor", "trainer.v1.trust_region"
RULE, ESTIMATOR = f"{KEY_PREFIX}.loss_mode", "algorithm.adv_estimator"
AROUND = ("divergence", "estimator", "topk", "anchor", "budget_target")  # knobs that stand before any rule
BEHIND = ("ratio_cap", "trace", "trace_cap", "on_nonfinite")  # behind those of ours
CLIPPING = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}  # verl's defaults
CLIPPING |= {"tau_pos": 1.0, "tau_neg": 1.05}
READ_BY_VERLS = {  # clip_ratio is looked at where its two parts are null
    "vanilla": ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c"),
    **dict.fromkeys(("cispo", "gspo"), ("clip_ratio_low", "clip_ratio_high")),
    "sapo": ("tau_pos", "tau_neg"),
}
LEFT_OUT = "groups of them are left out of the actor's update, which they would not change"
FOLLOWS = {  # from another value than the preset's
    ESTIMATOR: "advantages are verl's",
    "algorithm.use_kl_in_reward": "rewards carry a KL penalty",
    "algorithm.rollout_correction.bypass_mode": "the trainer recomputes the log-probs",
    f"{ACTOR}.loss_agg_mode": "responses are weighed as verl does in that mode",
    f"{ACTOR}.loss_scale_factor": "the sum over a response is divided by it",
    f"{ACTOR}.use_kl_loss": "the loss has a KL term",
    f"{ACTOR}.entropy_coeff": "the loss has an entropy term",
    "trainer.v1.trainer_mode": "a trainer from outside, which has to build on ours",
    f"{OPTIONS}.reproducible": "a seed a response, batches in the data loader's order",
}


def lines(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The rule that will train, its numbers, the trainer, what is left out, and what the command line took over.

    Args:
        config: composed of ``overrides``.
    """
    (name, preset), read = chosen(overrides), partial(OmegaConf.select, config)
    mode, clipping = str(read(RULE)), {f"{ACTOR}.{each}": usual for each, usual in CLIPPING.items()}
    looked_at, why_all = _looked_at(mode, read(KEY_PREFIX) or {}), list(skip.obstacles(config))
    of_rules = [*clipping, *(f"{KEY_PREFIX}.{each}" for each in knob_names(knobs_of_rule(mode)))]
    idle = {key for key in of_rules if key.rpartition(".")[2] not in looked_at}
    values = {key.rpartition(".")[2]: read(key) for key in of_rules if key not in idle}
    rows = [
        ("rule", mode + (f", of the preset {name}" if name else "")),
        ("numbers", " ".join(f"{knob}={value}" for knob, value in values.items() if value is not None)),
        ("trainer", f"verl's {read(f'{OPTIONS}.mode')}, under ours"),
        ("equal rewards", f"trained on as all others, because of {' and '.join(why_all)}" if why_all else LEFT_OUT),
    ]
    if read("distillation.enabled"):
        rows.append(("distillation", "verl's loss is added to the rule's; metrics are means of micro-batches"))
    engine, rollout = read(sizes.STRATEGY), read("actor_rollout_ref.rollout.name") or "vllm"
    if engine not in sizes.FSDP or rollout != "vllm":
        look = f"at the first steps look at {GAP}: near 0 it says that both sides' log-probs are of the same policy"
        rows.append(("engine", f"{engine} with {rollout}: nobody has run this yet (docs/gpu.md); {look}"))
    without_effect = []
    for key, usual in {**clipping, **preset}.items():
        value = read(key)
        if isinstance(usual, str) and usual.startswith("${"):
            usual = read(usual[2:-1])
        if _same(value, usual) or (key == extensions.KEY and str(value).endswith(f"/{usual}")):  # where the file lies
            continue
        if key not in idle:
            rows.append(("yours", "; ".join([f"{key}={value} (preset: {usual})", *_follows(key, why_all)])))
        elif value is not None:
            ours = f"{KEY_PREFIX}.{'ratio_cap' if key.endswith('clip_ratio_c') else 'delta'}"
            instead = f", whose own is {ours}" if key in clipping and mode not in VERL_LOSSES else ""
            without_effect.append(("no effect", f"{key}={value} is not looked at by {mode}{instead}"))
    return ["What trains:", *(f"  {title:<14}{text}" for title, text in [*rows, *without_effect])]


def _looked_at(mode: str, knobs: Mapping[str, Any]) -> set[str]:
    """Names of knobs, and of verl's clipping, that the rule reads."""
    can = capability(mode)
    behind = () if mode in VERL_LOSSES else BEHIND[:1] if can.own_weight else BEHIND
    found = {*can.reads, *AROUND, *behind, *READ_BY_VERLS.get(mode, ())}
    return found - idle_knobs({name: value for name, value in knobs.items() if name in found})


def _follows(key: str, why_all: Sequence[str]) -> Iterator[str]:
    """From another value of ``key`` than the preset's."""
    if key in FOLLOWS:
        yield FOLLOWS[key]
    if key == ESTIMATOR and not why_all:
        yield "groups of equal rewards are still left out"
    if any(each.startswith(f"{key}=") for each in why_all):
        yield "every response is trained on"


def contradictions(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """A sentence where preset and command line name two rules; a rule without a preset may go over another's."""
    name, preset = chosen(overrides)
    asked, given = preset.get(RULE), OmegaConf.select(config, RULE)
    if asked is None or asked == given:
        return
    homes = [other for other in presets.names() if presets.section(other, (), KEY_PREFIX).get("loss_mode") == given]
    if homes:
        yield (
            f"{RULE}={given} beside +{presets.GROUP}={name}, whose rule is {asked}: leave one of the two out; presets "
            f"with {given}: {', '.join(homes)}."
        )


def chosen(overrides: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The preset's name and what it sets, dotted key -> value; nothing without a preset."""
    given = parse(overrides)
    name, folders = given.get(presets.GROUP), presets.folders_of(given.get("hydra.searchpath") or ())
    if not isinstance(name, str) or presets.find(name, folders) is None:
        return None, {}
    settings = presets.settings(name, folders)
    settings.pop("hydra", None)
    return name, dict(_flat(settings))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _same(one: Any, other: Any) -> bool:
    """Equal, or the same number: YAML reads 3e-4 as a text, Hydra as a number."""
    try:
        return one == other or (not isinstance(one, bool) and float(one) == float(other))
    except (TypeError, ValueError):
        return False
