"""Which model, method and seed a run is: from the command line, else from what its config.yaml says.

A recipe names its project after the model (``qwen3_1p7b_base``) and its experiment after method and seed
(``cppo-seed1``); other runs are known by the model's path and the knobs of the loss.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cppo_verl import paper

Settings = Mapping[str, object]

UNKNOWN_MODEL = "model unknown"
UNKNOWN_METHOD = "method unknown"

# Knobs by which variants of a rule differ; what a run does not say is taken to be the reference's.
KNOBS = ("divergence", "estimator", "weights", "budget", "gate", "delta", "delta_b", "w_min", "trace")

_SAYS_NOTHING = ("", "gsm8k")  # no experiment's name, and verl's default
_SEED = re.compile(r"[-_/](?:seed|s)[-_]?([0-9]+)$")
_SEED_INSIDE = re.compile(r"(?:^|[-_.])seed[-_]?([0-9]+)(?=$|[-_.])")
_ALIASES = {"clip_higher": "GRPO", "ppo": "GRPO", "vanilla": "GRPO", "dppo_tv": "DPPO", "cppo_tv": "CPPO"}
_WORDS = (  # what a method's name says about a knob, where no config does
    (r"(^|_)kl(_|$)", "divergence", "kl"),
    (r"top_?k", "estimator", "topk"),
    (r"binary", "estimator", "binary"),
    (r"soft", "gate", "soft"),
    (r"restor", "gate", "restore"),
    (r"shuffle", "weights", "shuffled"),
    (r"(wo|without|no)_?(position_)?weights?|constant_weights?|budget_only", "weights", "constant"),
    (r"(wo|without|no)_?(prefix_)?budget|weights?_only", "budget", "none"),
)


class LabelError(ValueError):
    """A label on the command line is not PATH=MODEL/METHOD[/SEED]."""


@dataclass(frozen=True)
class Label:
    """Names as the report shows them; those of the paper in the paper's spelling. ``seed`` is empty when unknown."""

    model: str
    method: str
    seed: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.model, self.method, self.seed and f"seed {self.seed}") if part)


def model_key(name: str) -> str:
    """``Qwen/Qwen3-1.7B-Base`` as ``qwen3_1p7b_base``, the spelling of recipes and of the paper's Table 1."""
    return Path(name.rstrip("/")).name.lower().replace("-", "_").replace(".", "p")


def model_name(name: str) -> str:
    """The paper's spelling of a model it trains; any other name as it is."""
    known = {model_key(model): model for model in paper.settings()}
    return known.get(model_key(name), name)


def method_name(name: str) -> str:
    """The paper's spelling of a method of its Table 1; any other name as it is."""
    key = _normal(name)
    known = {_normal(method): method for method in paper.METHODS}
    return _ALIASES.get(key) or known.get(key, name)


def parse_label(text: str) -> tuple[str, Label]:
    """``PATH=MODEL/METHOD[/SEED]`` as the path as given and the label.

    Raises:
        LabelError: another form.
    """
    path, found, rest = text.rpartition("=")
    parts = [part.strip() for part in rest.split("/")]
    if not found or not path or len(parts) not in (2, 3) or not all(parts):
        raise LabelError(
            f"--label {text}: not of the form PATH=MODEL/METHOD[/SEED], as in runs/a=qwen3_1p7b_base/cppo/1. "
            "Write a model as its last name, without the organisation."
        )
    seed = parts[2].removeprefix("seed") if len(parts) == 3 else ""
    return path, Label(model_name(parts[0]), method_name(parts[1]), seed)


def label_of(settings: Settings, place: Path) -> Label:
    """The label that a run's settings give, and where they say nothing its place: ``.../MODEL/METHOD-seedN``.

    The experiment's name is preferred to the knobs, since it says what the run was meant to be.
    """
    experiment = str(settings.get("experiment", ""))
    if experiment in _SAYS_NOTHING:
        experiment = place.stem if place.suffix == ".jsonl" else place.name
    seed = _SEED.search(experiment)
    base = experiment[: seed.start()] if seed else experiment
    method = method_name(base)
    if method not in paper.METHODS and str(settings.get("experiment", "")) in _SAYS_NOTHING:
        method = _method_of_knobs(settings) or method
    return Label(_model_of(settings, place), method or UNKNOWN_METHOD, seed[1] if seed else _seed_of(settings, place))


def knobs_of(label: Label, settings: Settings) -> dict[str, object]:
    """The rule and its knobs as far as known: from the config, else from the words of the method's name."""
    mode = settings.get("loss_mode")
    if mode:
        found = {knob: settings[knob] for knob in KNOBS if knob in settings}
        return {"rule": "grpo" if mode == "vanilla" else str(mode), **found}
    name = _normal(label.method)
    rule = next((rule for rule in ("trm_max_avg", *map(_normal, paper.METHODS)) if name.startswith(rule)), name)
    knobs: dict[str, object] = {"rule": rule}
    knobs |= {knob: value for pattern, knob, value in _WORDS if re.search(pattern, name)}
    for knob in ("delta_b", "w_min"):
        value = re.search(rf"{knob}_?([0-9]+[.p]?[0-9]*)", name)
        if value:
            knobs[knob] = float(value[1].replace("p", "."))
    return knobs


def deviations(label: Label, settings: Settings) -> list[str]:
    """What the config sets otherwise than the paper's Table 3 does for this model and method, in words."""
    setting = paper.settings().get(label.model)
    if setting is None or label.method not in paper.METHODS:
        return []
    wanted: dict[str, object] = {
        "prompts": setting.prompts,
        "responses": setting.n,
        "mini_batch": setting.minibatch,
        "max_response_length": setting.max_response_tokens,
        "loss_mode": {"GRPO": "vanilla"}.get(label.method, _normal(label.method)),
    }
    if label.method in ("CPPO", "DPPO"):
        wanted["delta"] = setting.delta
    if label.method == "CPPO":
        wanted |= {"delta_b": setting.delta_b_min, "w_min": setting.w_min, "budget": setting.budget}
    return [
        f"{name} is {settings[name]}, the paper's {value}"
        for name, value in wanted.items()
        if name in settings and settings[name] != value
    ]


def _model_of(settings: Settings, place: Path) -> str:
    project, path = str(settings.get("project", "")), str(settings.get("model", ""))
    for candidate in (project, path, place.parent.name):
        if model_name(candidate) in paper.settings():
            return model_name(candidate)
    return _SEED.sub("", Path(path.rstrip("/")).name) or project or UNKNOWN_MODEL


def _seed_of(settings: Settings, place: Path) -> str:
    """The seed that the run's directory is named after, else that of its data."""
    inside = _SEED_INSIDE.search(place.stem if place.suffix == ".jsonl" else place.name)
    return inside[1] if inside else str(settings.get("data_seed", ""))


def _method_of_knobs(settings: Settings) -> str:
    """The method of Table 1 that the loss is, or its rule with what sets it apart; empty without a rule."""
    mode = str(settings.get("loss_mode", ""))
    if not mode:
        return ""
    usual = {"weights": "linear", "gate": "hard"} if mode == "cppo" else {}
    usual |= {"divergence": "tv"} if mode in ("cppo", "dppo") else {}
    parts = [str(settings[knob]) for knob, value in usual.items() if settings.get(knob, value) != value]
    parts += ["no budget"] if mode == "cppo" and settings.get("budget") == "none" else []
    return method_name(" ".join([mode, *parts]))


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")
