"""What can be said of a run's Hydra overrides with Python alone, in milliseconds: preset, knobs, sizes.

``integration.checks`` looks at the whole composed config afterwards; this only says the same earlier.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cppo_verl import presets
from cppo_verl.launch import overrides as hydra_overrides
from cppo_verl.launch import sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs, knob_names, knob_problems

SEARCH_PATH = "hydra.searchpath"


def problems(overrides: Sequence[str], heads: sizes.Heads | None = None, own_config: bool = False) -> list[str]:
    """One sentence for an unknown preset, each knob out of range and each size that no run survives.

    A run without a preset is none of our business. A rule from outside is imported for it, and torch with it.

    Args:
        overrides: as for Hydra; the last one of a key counts.
        heads: of the model, where they are known.
        own_config: whether the config that they change is another than verl's, and may name a preset itself.
    """
    try:
        given = hydra_overrides.parse(overrides)
    except hydra_overrides.OverrideError as error:
        return [str(error)]
    preset = given.values.get(presets.GROUP)
    if not isinstance(preset, str):
        return []
    if presets.GROUP in given.bare and not own_config:
        return [f"{presets.GROUP}={preset}: verl's config has no such group; write +{presets.GROUP}={preset}."]
    values = {key: value for key, value in given.values.items() if "${" not in str(value)}  # which is Hydra's to fill
    search_path = given.values.get(SEARCH_PATH) or []
    return [*_knob_problems(preset, values, search_path), *sizes.problems(values, heads)]


def _knob_problems(preset: str, values: Mapping[str, Any], search_path: Sequence[str]) -> Iterable[str]:
    folders = presets.folders_of(search_path)
    if presets.find(preset, folders) is None:  # and where the search path names packages, only Hydra can look there
        return [unknown(preset, folders)] if len(folders) == len(search_path) else []
    if wrong := presets.problems(preset, folders):
        return wrong
    chosen = presets.section(preset, folders, KEY_PREFIX) | own_knobs(values)
    kind: type[TrustRegionKnobs] = TrustRegionKnobs
    if presets.is_from_outside(preset, folders) or chosen.get("rule_module"):
        from cppo_verl.trust_region import extensions
        from cppo_verl.trust_region.rules import RULES, VERL_LOSSES, knobs_of_rule

        mode, module = str(chosen.get("loss_mode")), chosen.get("rule_module")
        module = module and extensions.resolve(str(module), [*folders, Path.cwd()])
        try:
            extensions.bring(mode, module)
        except KnobError as error:
            return [str(error)]
        if mode not in RULES and mode not in VERL_LOSSES:
            return [extensions.unknown_rule(mode, module)]
        kind = knobs_of_rule(mode)
    return out_of_range(chosen, kind)


def unknown(preset: str, folders: Sequence[Path] = ()) -> str:
    """The sentence for a preset that is not there."""
    return f"{presets.GROUP}={preset!r} is no preset; there are {', '.join(presets.names(folders))}."


def own_knobs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of Hydra keys and values, the knobs by their names."""
    prefix = KEY_PREFIX + "."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def out_of_range(chosen: Mapping[str, Any], kind: type[TrustRegionKnobs] = TrustRegionKnobs) -> Iterable[str]:
    """One sentence for each knob that is wrong; interpolations are not looked at."""
    knobs = kind()
    for name in knob_names(kind):
        if name in chosen and "${" not in str(chosen[name]):
            setattr(knobs, name, chosen[name])
    return knob_problems(knobs)
