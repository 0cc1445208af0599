"""The handful of settings that a reader of a report wants to know, from the run's resolved verl config."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cppo_verl.trust_region.knobs import names_from_outside

CONFIG_FILE = "config.yaml"

_LOSS = "actor_rollout_ref.actor.policy_loss."
OWN = "own/"
KEYS = {
    # short name: key in verl's config
    "loss_mode": _LOSS + "loss_mode",
    "rule_module": _LOSS + "rule_module",
    "divergence": _LOSS + "divergence",
    "estimator": _LOSS + "estimator",
    "topk": _LOSS + "topk",
    "delta": _LOSS + "delta",
    "delta_b": _LOSS + "delta_b",
    "budget": _LOSS + "budget",
    "weights": _LOSS + "weights",
    "w_min": _LOSS + "w_min",
    "gate": _LOSS + "gate",
    "restore_strength": _LOSS + "restore_strength",
    "anchor": _LOSS + "anchor",
    "budget_target": _LOSS + "budget_target",
    "mode": "trainer.v1.trust_region.mode",
    "advantage": "algorithm.adv_estimator",
    "model": "actor_rollout_ref.model.path",
    "prompts": "data.train_batch_size",
    "responses": "actor_rollout_ref.rollout.n",
    "mini_batch": "actor_rollout_ref.actor.ppo_mini_batch_size",
    "learning_rate": "actor_rollout_ref.actor.optim.lr",
    "data_seed": "data.seed",
    "rollout_seed": "actor_rollout_ref.rollout.seed",
    "mini_batch_seed": "actor_rollout_ref.actor.data_loader_seed",
    "max_response_length": "data.max_response_length",
    "project": "trainer.project_name",
    "experiment": "trainer.experiment_name",
}

KNOB_LABELS = {
    "delta": "Token threshold delta",
    "delta_b": "Prefix budget delta_b",
    "budget": "Budget kind",
    "weights": "Position weights",
    "w_min": "Last weight w_min",
    "gate": "Gate",
}
ASYNC_LABELS = {  # told where they are not as usual
    "mode": ("Trainer", "sync"),
    "anchor": ("Anchor", "rollout"),
    "budget_target": ("Masked share asked for", None),
}
CPPO_ONLY = ("delta_b", "budget", "weights", "w_min", "gate")


class SettingsError(ValueError):
    """The config file cannot be read; the message names it and the cause."""


def read_settings(path: Path) -> dict[str, object]:
    """Short name -> value for every key of ``KEYS`` that the config sets (null counts as not set).

    The knobs of a rule from outside are there too, as ``OWN`` and their name.

    Raises:
        SettingsError: the file is no YAML mapping.
    """
    try:
        config = OmegaConf.load(path)
        if not OmegaConf.is_dict(config):
            raise SettingsError(f"{path} is not a mapping of keys to values.")
        found = {name: OmegaConf.select(config, key, throw_on_resolution_failure=False) for name, key in KEYS.items()}
        loss = OmegaConf.select(config, _LOSS[:-1], throw_on_resolution_failure=False)
        if OmegaConf.is_dict(loss):
            for name in names_from_outside(map(str, loss)):
                found[OWN + name] = OmegaConf.select(loss, name, throw_on_resolution_failure=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} could not be read: {' '.join(str(error).split())}.") from error
    return {name: value for name, value in found.items() if isinstance(value, (str, int, float))}


def settings_table(settings: Mapping[str, object]) -> list[tuple[str, str]]:
    """(label, text) rows for the page, in reading order, without what the config leaves unset or the rule unused."""
    unused = unused_knobs(settings)
    rows = [
        ("Rule", _text(settings, "loss_mode")),
        ("Divergence", _text(settings, "divergence")),
        ("Estimator", _estimator(settings)),
        *((label, _text(settings, name)) for name, label in KNOB_LABELS.items() if name not in unused),
        *(
            (label, _text(settings, name))
            for name, (label, usual) in ASYNC_LABELS.items()
            if settings.get(name, usual) != usual
        ),
        *((name.removeprefix(OWN), _text(settings, name)) for name in own_knobs(settings)),
        ("Advantage", _text(settings, "advantage")),
        ("Model", Path(_text(settings, "model").rstrip("/")).name),
        ("Prompts × responses", _product(settings, "prompts", "responses")),
        ("Mini-batch (prompts)", _text(settings, "mini_batch")),
        ("Learning rate", _text(settings, "learning_rate")),
        ("Seeds", _seeds(settings)),
    ]
    return [(label, text) for label, text in rows if text]


def method_name(settings: Mapping[str, object]) -> str:
    """What the method is called in a headline: the rule in capitals, with what sets it apart; empty if unknown."""
    mode = _text(settings, "loss_mode")
    if mode == "cppo":
        parts = [str(settings.get(name)) for name, usual in (("divergence", "tv"), ("gate", "hard"))
                 if settings.get(name, usual) != usual]  # fmt: skip
        return "CPPO" + (f" ({', '.join(parts)})" if parts else "")
    return {"dppo": "DPPO", "vanilla": "PPO"}.get(mode, mode)


def own_knobs(settings: Mapping[str, object]) -> list[str]:
    """Names in ``settings`` of the knobs of a rule from outside."""
    return [name for name in settings if name.startswith(OWN)]


def unused_knobs(settings: Mapping[str, object]) -> set[str]:
    """Knobs of which the rule takes no notice: CPPO's under another rule, and those that another knob turns off.

    What a rule from outside reads is not known; none is left out.
    """
    if "rule_module" in settings or own_knobs(settings):
        return set()
    if settings.get("loss_mode") != "cppo":
        return set(CPPO_ONLY)
    disabled = {"delta_b": settings.get("budget") == "none", "w_min": settings.get("weights") == "constant"}
    return {name for name, off in disabled.items() if off}


def _text(settings: Mapping[str, object], name: str) -> str:
    value = settings.get(name, "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _estimator(settings: Mapping[str, object]) -> str:
    name = _text(settings, "estimator")
    return f"top-{settings['topk']}" if name == "topk" and "topk" in settings else name


def _product(settings: Mapping[str, object], left: str, right: str) -> str:
    parts = [_text(settings, left), _text(settings, right)]
    return " × ".join(part or "?" for part in parts) if any(parts) else ""


def _seeds(settings: Mapping[str, object]) -> str:
    named = {"data": "data_seed", "rollout": "rollout_seed", "mini-batches": "mini_batch_seed"}
    return ", ".join(f"{label} {settings[key]}" for label, key in named.items() if key in settings)
