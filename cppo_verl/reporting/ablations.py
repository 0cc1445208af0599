"""Groups the ablations of the paper's Figures 5 and 6 into panels, by the knobs in which a run differs from CPPO."""

from collections.abc import Mapping, Sequence

from cppo_verl import paper
from cppo_verl.reporting.comparison import KNOBS
from cppo_verl.reporting.labels import Label, rule_name
from cppo_verl.reporting.scores import Entry
from cppo_verl.reporting.settings import Settings
from cppo_verl.reporting.template import data
from cppo_verl.reporting.text import short

Knobs = Mapping[str, object]

OTHER = "other"
TITLES: Mapping[str, str] = data("figures.yaml")["ablations"]
_SAYS_NOTHING = {  # a knob and value that leave others without effect, or replace them
    ("budget", "none"): ("delta_b",),
    ("weights", "constant"): ("w_min",),
    ("divergence", "kl"): ("delta", "delta_b"),
}


def groups(entries: Sequence[Entry], model: str) -> dict[str, dict[str, list[Entry]]]:
    """Panel -> name in it -> runs, CPPO first: the panels of a model that hold a run that is not of Table 1, and every
    such run is in one or more."""
    own = [entry for entry in entries if entry.label.model == model and entry.run is not None]
    reference = reference_knobs(own, model)
    found: dict[str, dict[str, list[Entry]]] = {key: {} for key in TITLES}
    variants = set()
    for entry in sorted(own, key=lambda entry: (entry.label.method != "CPPO", entry.label.method)):
        knobs, method = knobs_of(entry.settings, entry.label), entry.label.method
        for key in panels_of(knobs, method, reference):
            found[key].setdefault(_member_name(knobs, method, reference), []).append(entry)
            variants |= {key} - ({key} if method in paper.METHODS else set())
    return {key: members for key, members in found.items() if key in variants}


def knobs_of(settings: Settings, label: Label) -> dict[str, object]:
    """The rule and its knobs as far as the config says them; without one the rule is what the method is called."""
    mode = settings.get("loss_mode", rule_name(label.method))
    return {"rule": "grpo" if mode == "vanilla" else str(mode)} | {k: settings[k] for k in KNOBS if k in settings}


def reference_knobs(entries: Sequence[Entry], model: str) -> Knobs:
    """The knobs of the model's CPPO run over those of the paper's Table 3."""
    known: dict[str, object] = {"divergence": "tv", "estimator": "topk", "weights": "linear", "gate": "hard"}
    if setting := paper.settings().get(model):
        known |= {"delta": setting.delta, "delta_b": setting.delta_b_min, "w_min": setting.w_min}
        known["budget"] = setting.budget
    own = next((knobs_of(entry.settings, entry.label) for entry in entries if entry.label.method == "CPPO"), {})
    return known | own | {"rule": "cppo"}


def differences(knobs: Knobs, reference: Knobs) -> dict[str, object]:
    """Knob -> value where both are known and differ, without those that another knob leaves without effect."""
    found = {k: knobs[k] for k in KNOBS if k in knobs and k in reference and knobs[k] != reference[k]}
    idle = {name for (knob, value), names in _SAYS_NOTHING.items() if found.get(knob) == value for name in names}
    return {knob: value for knob, value in found.items() if knob not in idle}


def panels_of(knobs: Knobs, method: str, reference: Knobs) -> tuple[str, ...]:
    """Keys of the panels that a run belongs to."""
    changed, rule = differences(knobs, reference), str(knobs["rule"])
    if rule == "cppo" and not changed:
        return tuple(TITLES)
    if rule.startswith("trm_"):
        return ("sequence", "divergence") if rule == "trm_max_avg" else ("sequence",)
    if knobs.get("trace", 1) != 1:
        return (OTHER,)  # NFPO stands on DPPO's mask and is no variant of the paper's
    if rule == "dppo":
        changed = {knob: value for knob, value in changed.items() if knob in ("divergence", "estimator")}
        if not changed:
            return ("mechanisms", "divergence", "estimator")
    if rule not in ("cppo", "dppo") or len(changed) != 1:
        return () if method in paper.METHODS else (OTHER,)
    (knob, value), *_ = changed.items()
    if (knob, value) in (("budget", "none"), ("weights", "constant")):
        return ("mechanisms",)
    keys = (knob,) if knob in TITLES else (OTHER,)
    return (*keys, "sequence") if (rule, knob, value) == ("cppo", "divergence", "kl") else keys


def _member_name(knobs: Knobs, method: str, reference: Knobs) -> str:
    changed, rule = differences(knobs, reference), knobs["rule"]
    if method in paper.METHODS:
        return method
    if rule == "dppo":
        return ", ".join(["DPPO", *(_words(k, v) for k, v in changed.items() if k in ("divergence", "estimator"))])
    if rule == "cppo" and changed:
        return ", ".join(_words(knob, value) for knob, value in changed.items())
    return "TRM Max&Avg" if rule == "trm_max_avg" else method


def _words(knob: str, value: object) -> str:
    turned = f"{value} {knob}" if knob in ("weights", "gate", "budget") else f"{knob} {short(value)}"
    return data("figures.yaml")["knob_values"].get(f"{knob} {value}", turned)
