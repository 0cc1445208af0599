"""The handful of settings that a reader of a report wants to know, from the run's resolved verl config."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cppo_verl.reporting.template import data
from cppo_verl.reporting.text import short
from cppo_verl.trust_region.knobs import PREFIX_KNOBS, idle_knobs, names_from_outside

CONFIG_FILE = "config.yaml"
Settings = Mapping[str, object]

OWN = "own/"  # before the name of a knob of a rule from outside
KEYS, KNOB_LABELS, ASYNC_LABELS = (data("settings.yaml")[part] for part in ("keys", "knobs", "of_the_trainer"))
_LOSS = KEYS["loss_mode"].rpartition(".")[0]
_CLIPS, _CLIPPED = {"clip_low", "clip_high"}, ("vanilla", "cispo", "gspo")
_OTHERS_TOO = {"dppo": {"gate"}, "trm_max_avg": {"delta_b"}}


class SettingsError(ValueError):
    """The config file cannot be read; the message names it and the cause."""


def settings_beside(place: Path) -> tuple[Settings, tuple[str, ...]]:
    """The settings of the run in (or beside the log) ``place``, and a note where its config cannot be read."""
    config = (place.parent if place.is_file() else place) / CONFIG_FILE
    try:
        return (read_settings(config) if config.is_file() else {}), ()
    except SettingsError as error:
        return {}, (f"{error} The settings are missing from this report.",)


def read_settings(path: Path) -> dict[str, object]:
    """Short name -> value for every key of ``KEYS`` that the config sets (null counts as not set), and for the knobs of
    a rule from outside, as ``OWN`` and their name; a SettingsError where the file is no YAML mapping."""
    try:
        config = OmegaConf.load(path)
        if not OmegaConf.is_dict(config):
            raise SettingsError(f"{path} is not a mapping of keys to values.")
        loss = OmegaConf.select(config, _LOSS, throw_on_resolution_failure=False)
        own = names_from_outside(map(str, loss)) if OmegaConf.is_dict(loss) else []
        keys = KEYS | {OWN + name: f"{_LOSS}.{name}" for name in own}
        found = {name: OmegaConf.select(config, key, throw_on_resolution_failure=False) for name, key in keys.items()}
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} could not be read: {' '.join(str(error).split())}.") from error
    return {name: value for name, value in found.items() if isinstance(value, (str, int, float))}


def settings_table(settings: Settings) -> list[tuple[str, str]]:
    """(label, text) rows for the page, in reading order, without what the config leaves unset or the rule unused."""
    text = {name: short(value) for name, value in settings.items()}
    seeds = {"data": "data_seed", "rollout": "rollout_seed", "mini-batches": "mini_batch_seed"}
    batch = [text.get("prompts", ""), text.get("responses", "")]
    topk = settings.get("estimator") == "topk" and "topk" in settings
    unused = unused_knobs(settings)
    rows = {
        "Rule": text.get("loss_mode"),
        "Divergence": text.get("divergence"),
        "Estimator": f"top-{settings['topk']}" if topk else text.get("estimator"),
        **{label: text.get(name) for name, label in KNOB_LABELS.items() if name not in unused},
        **{label: text[name] for name, (label, usual) in ASYNC_LABELS.items() if settings.get(name, usual) != usual},
        **{name.removeprefix(OWN): text[name] for name in own_knobs(settings)},
        "Advantage": text.get("advantage"),
        "Model": Path(text.get("model", "").rstrip("/")).name,
        "Prompts × responses": " × ".join(part or "?" for part in batch) if any(batch) else "",
        "Mini-batch (prompts)": text.get("mini_batch"),
        "Learning rate": text.get("learning_rate"),
        "Seeds": ", ".join(f"{label} {text[key]}" for label, key in seeds.items() if key in text),
    }
    return [(label, said) for label, said in rows.items() if said]


def headline_name(settings: Settings) -> str:
    """What a headline calls the method: the rule in capitals, with what sets it apart; empty if unknown."""
    mode, odd = str(settings.get("loss_mode", "")), odd_knobs(settings)
    name = {"cppo": "CPPO", "dppo": "DPPO", "vanilla": "PPO"}.get(mode, mode)
    return f"{name} ({', '.join(odd)})" if odd else name


def odd_knobs(settings: Settings) -> list[str]:
    """Values of the knobs of CPPO and DPPO that make them another method than the paper's."""
    mode, traced = settings.get("loss_mode"), settings.get("trace", 1)
    usual = {"weights": "linear"} if mode == "cppo" else {}
    usual |= {"gate": "hard", "divergence": "tv"} if mode in ("cppo", "dppo") else {}
    odd = [str(settings[knob]) for knob, value in usual.items() if settings.get(knob, value) != value]
    odd += [f"trace {traced}"] * (mode in ("cppo", "dppo") and traced != 1)
    return odd + ["no budget"] * (mode == "cppo" and settings.get("budget") == "none")


def own_knobs(settings: Settings) -> list[str]:
    return [name for name in settings if name.startswith(OWN)]


def unused_knobs(settings: Settings) -> set[str]:
    """Knobs of which the rule takes no notice: CPPO's under another rule, and those that another knob turns off. What a
    rule from outside reads is not known; none is left out."""
    if "rule_module" in settings or own_knobs(settings):
        return set()
    mode = str(settings.get("loss_mode"))
    unread = set() if mode == "cppo" else {"gate", *PREFIX_KNOBS} - _OTHERS_TOO.get(mode, set())
    unread |= set() if mode in _CLIPPED else _CLIPS
    idle = idle_knobs({name: value for name, value in settings.items() if name not in unread})
    return (unread | idle) - {"max_response_length"}  # the data's here, not the knob
