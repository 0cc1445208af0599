"""Which model, method and seed a run is: from the command line, else from what its config.yaml says.

A recipe names its project after the model (``qwen3_1p7b_base``) and its experiment after method and seed
(``cppo-seed1``); other runs are known by the model's path and the knobs of the loss.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from cppo_verl import paper
from cppo_verl.atomic import writable
from cppo_verl.errors import UserError
from cppo_verl.reporting.settings import Settings, odd_knobs

_SAYS_NOTHING = ("", "gsm8k")  # no experiment's name, and verl's default
_SEED = re.compile(r"[-_/](?:seed|s)[-_]?([0-9]+)$")
_SEED_INSIDE = re.compile(r"(?:^|[-_.])seed[-_]?([0-9]+)(?=$|[-_.])")
_ALIASES = {"clip_higher": "GRPO", "ppo": "GRPO", "vanilla": "GRPO", "dppo_tv": "DPPO", "cppo_tv": "CPPO"}


class LabelError(UserError, ValueError):
    """A label on the command line is not PATH=MODEL/METHOD[/SEED], or is of no run of the report."""


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
    return {model_key(model): model for model in paper.settings()}.get(model_key(name), name)


def method_name(name: str) -> str:
    """The paper's spelling of a method of its Table 1; any other name as it is."""
    known = {rule_name(method): method for method in paper.METHODS} | _ALIASES
    return known.get(rule_name(name), name)


def rule_name(method: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", method.lower()).strip("_")


def parse_label(text: str) -> tuple[str, Label]:
    """``PATH=MODEL/METHOD[/SEED]`` as the path as given and the label; a LabelError for another form."""
    path, found, rest = text.rpartition("=")
    parts = [part.strip() for part in rest.split("/")]
    if not found or not path or len(parts) not in (2, 3) or not all(parts):
        raise LabelError(
            f"--label {text}: not of the form PATH=MODEL/METHOD[/SEED], as in runs/a=qwen3_1p7b_base/cppo/1. "
            "Write a model as its last name, without the organisation."
        )
    return path, Label(model_name(parts[0]), method_name(parts[1]), "".join(parts[2:]).removeprefix("seed"))


def label_of(settings: Settings, place: Path) -> Label:
    """The label that a run's settings give, and where they say nothing its place: ``.../MODEL/METHOD-seedN``.

    The experiment's name is preferred to the knobs, since it says what the run was meant to be.
    """
    own_name = writable(place.stem if place.suffix == ".jsonl" else place.name)
    named = str(settings.get("experiment", ""))
    experiment = own_name if named in _SAYS_NOTHING else named
    method = method_name(_SEED.sub("", experiment))
    if method not in paper.METHODS and named in _SAYS_NOTHING:
        # the method of Table 1 that the loss is, or its rule with what sets it apart
        method = method_name(" ".join([str(settings.get("loss_mode", "")), *odd_knobs(settings)])) or method
    seed = _SEED.search(experiment) or _SEED_INSIDE.search(own_name)
    return Label(
        _model_of(settings, place), method or "method unknown", seed[1] if seed else str(settings.get("data_seed", ""))
    )


def deviations(label: Label, settings: Settings) -> list[str]:
    """What the config sets otherwise than the paper's Table 3 does for this model and method, in words."""
    setting = paper.settings().get(label.model)
    if setting is None or label.method not in paper.METHODS:
        return []
    mode = {"GRPO": "vanilla"}.get(label.method, rule_name(label.method))
    wanted: dict[str, object] = {"prompts": setting.prompts, "responses": setting.n, "mini_batch": setting.minibatch}
    wanted |= {"max_response_length": setting.max_response_tokens, "loss_mode": mode}
    if label.method in ("CPPO", "DPPO"):
        wanted["delta"] = setting.delta
    if label.method == "CPPO":
        wanted |= {"delta_b": setting.delta_b_min, "w_min": setting.w_min, "budget": setting.budget}
    said = {name: settings[name] for name in wanted if name in settings}
    return [f"{name} is {x}, the paper's {wanted[name]}" for name, x in said.items() if x != wanted[name]]


def _model_of(settings: Settings, place: Path) -> str:
    project, path = str(settings.get("project", "")), str(settings.get("model", ""))
    for name in (project, path, place.parent.name):
        if model_name(name) in paper.settings():
            return model_name(name)
    return _SEED.sub("", Path(path.rstrip("/")).name) or project or "model unknown"
