"""What will train, in a few lines before anything starts, and what a command line contradicts.

A preset is put in front of a command line that was written without it, and the command line wins. So each key of the
preset that it took over is told, with what follows from it. Where both cannot be meant, the run is refused instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cppo_verl import presets
from cppo_verl.integration import engines, skip
from cppo_verl.launch.overrides import parse
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import KEY_PREFIX, knob_names
from cppo_verl.trust_region.rules import VERL_LOSSES, capability, knobs_of_rule

FILE = "start.txt"  # in the run directory, or in Hydra's output folder where there is none
ACTOR, OPTIONS = "actor_rollout_ref.actor", "trainer.v1.trust_region"
AROUND = ("divergence", "estimator", "topk", "anchor", "budget_target")  # knobs that stand before any rule
BEHIND = ("ratio_cap", "trace", "trace_cap", "on_nonfinite")  # behind those of ours
ONLY_WITH = {  # a knob, and the value of another without which it is not looked at
    "topk": ("estimator", "topk"),
    "attenuation": ("gate", "soft"),
    "restore_strength": ("gate", "restore"),
    "shuffle_seed": ("weights", "shuffled"),
    "max_response_length": ("horizon", "max"),
    **dict.fromkeys(("budget_quantile", "budget_scale", "budget_cap"), ("budget", "quantile")),
}
CLIPPING = ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg")
VERLS_DEFAULTS = dict(zip(CLIPPING, (0.2, 0.2, 0.2, 3.0, 1.0, 1.05), strict=True))
READ_BY_VERLS = {  # clip_ratio is looked at where its two parts are null
    "vanilla": ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c"),
    **dict.fromkeys(("cispo", "gspo"), ("clip_ratio_low", "clip_ratio_high")),
    "sapo": ("tau_pos", "tau_neg"),
}
FOLLOWS = {  # from another value than the preset's
    "algorithm.adv_estimator": "advantages are verl's",
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
    name, preset = chosen(overrides)
    mode, idle = str(OmegaConf.select(config, f"{KEY_PREFIX}.loss_mode")), _idle_keys(config)
    rows = [
        ("rule", mode + (f", of the preset {name}" if name else "")),
        ("numbers", _numbers(config, mode, idle)),
        ("trainer", f"verl's {OmegaConf.select(config, f'{OPTIONS}.mode')}, under ours"),
        ("equal rewards", _equal_rewards(config)),
    ]
    if OmegaConf.select(config, "distillation.enabled"):
        rows.append(("distillation", "verl's loss is added to the rule's; metrics are means of micro-batches"))
    rows += [("engine", each) for each in engines.notes(config)]
    rows += [("yours", each) for each in _taken_over(config, preset, idle)]
    rows += [("no effect", each) for each in _without_effect(config, preset, idle)]
    return ["What trains:", *(f"  {title:<14}{text}" for title, text in rows)]


def contradictions(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """A sentence where preset and command line name two rules; a rule without a preset may go over another's."""
    key, (name, preset) = f"{KEY_PREFIX}.loss_mode", chosen(overrides)
    asked, given = preset.get(key), OmegaConf.select(config, key)
    if asked is None or asked == given:
        return
    homes = [other for other in presets.names() if presets.section(other, (), KEY_PREFIX).get("loss_mode") == given]
    if homes:
        yield (
            f"{key}={given} beside +{presets.GROUP}={name}, whose rule is {asked}: leave one of the two out; presets "
            f"with {given}: {', '.join(homes)}."
        )


def chosen(overrides: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The preset's name and what it sets, dotted key -> value; nothing without a preset."""
    given = parse(overrides).values
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


def _idle_keys(config: DictConfig) -> set[str]:
    """Knobs, and verl's clipping, that the rule does not look at."""
    knobs = OmegaConf.select(config, KEY_PREFIX) or {}
    mode = str(knobs.get("loss_mode"))
    can, verls = capability(mode), mode in VERL_LOSSES
    looked_at = {*can.reads, *AROUND, *(() if verls else BEHIND[:1] if can.own_weight else BEHIND)}
    looked_at -= {name for name, (other, needed) in ONLY_WITH.items() if knobs.get(other) != needed}
    idle = {f"{KEY_PREFIX}.{name}" for name in knob_names(knobs_of_rule(mode)) if name not in looked_at}
    return idle | {f"{ACTOR}.{name}" for name in CLIPPING if name not in READ_BY_VERLS.get(mode, ())}


def _numbers(config: DictConfig, mode: str, idle: set[str]) -> str:
    """All that the rule decides by."""
    keys = [f"{ACTOR}.{name}" for name in CLIPPING] if mode in VERL_LOSSES else []
    keys += [f"{KEY_PREFIX}.{name}" for name in knob_names(knobs_of_rule(mode))]
    values = {key.rpartition(".")[2]: OmegaConf.select(config, key) for key in keys if key not in idle}
    return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def _equal_rewards(config: DictConfig) -> str:
    why = list(skip.obstacles(config))
    if why:
        return f"trained on as all others, because of {' and '.join(why)}"
    filtered = OmegaConf.select(config, "algorithm.filter_groups.enable")
    before = (
        "verl's filter_groups asks further prompts instead; what remains is " if filtered else "groups of them are "
    )
    return before + "left out of the actor's update, which they would not change"


def _taken_over(config: DictConfig, preset: Mapping[str, Any], idle: set[str]) -> Iterator[str]:
    """Each key of the preset with another value, that of the preset, and what follows."""
    why = {each.partition("=")[0] for each in skip.obstacles(config)}
    for key, value, theirs in _changed(config, preset):
        if key not in idle:
            follows = [FOLLOWS[key]] if key in FOLLOWS else []
            if key == "algorithm.adv_estimator" and not why:
                follows.append("groups of equal rewards are still left out")
            follows += ["every response is trained on"] if key in why else []
            yield "; ".join([f"{key}={value} (preset: {theirs})", *follows])


def _without_effect(config: DictConfig, preset: Mapping[str, Any], idle: set[str]) -> Iterator[str]:
    mode = OmegaConf.select(config, f"{KEY_PREFIX}.loss_mode")
    verls = {f"{ACTOR}.{name}": value for name, value in VERLS_DEFAULTS.items()}
    for key, value, _ in _changed(config, {**verls, **preset}):
        if key in idle and value is not None:
            cap = key.endswith("clip_ratio_c")
            instead = f", whose own is {KEY_PREFIX}.{'ratio_cap' if cap else 'delta'}" if key in verls else ""
            yield f"{key}={value} is not looked at by {mode}" + ("" if mode in VERL_LOSSES else instead)


def _changed(config: DictConfig, usual: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and usual value of each that differ."""
    for key, theirs in usual.items():
        value = OmegaConf.select(config, key)
        if isinstance(theirs, str) and theirs.startswith("${"):
            theirs = OmegaConf.select(config, theirs[2:-1])
        found = key == extensions.KEY and str(value).endswith(f"/{theirs}")  # the preset's own file, where it lies
        if not found and not _same(value, theirs):
            yield key, value, theirs


def _same(one: Any, other: Any) -> bool:
    """Equal, or the same number: YAML reads 3e-4 as a text, Hydra as a number."""
    try:
        return one == other or (not isinstance(one, bool) and float(one) == float(other))
    except (TypeError, ValueError):
        return False
