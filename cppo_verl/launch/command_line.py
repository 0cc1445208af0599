"""What can be said of a run's Hydra overrides with Python alone, in milliseconds: preset, knobs, sizes.

``integration.checks`` looks at the whole composed config afterwards; this only says the same earlier.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cppo_verl import presets
from cppo_verl.launch import overrides as hydra_overrides
from cppo_verl.launch import sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX, TrustRegionKnobs, knob_names, knob_problems

SEARCH_PATH = "hydra.searchpath"


def problems(overrides: Sequence[str]) -> list[str]:
    """One sentence for an unknown preset, each knob out of range and each size that no run survives; as for Hydra, the
    last override of a key counts.

    A run without a preset is none of our business; knobs of a rule from outside are left to the start's check.
    """
    try:
        given = hydra_overrides.parse(overrides)
    except hydra_overrides.OverrideError as error:
        return [str(error)]
    preset = given.get(presets.GROUP)
    if not isinstance(preset, str):
        return []
    values = {key: value for key, value in given.items() if "${" not in str(value)}  # which is Hydra's to fill
    return [*_knob_problems(preset, values, given.get(SEARCH_PATH) or []), *sizes.problems(values)]


def _knob_problems(preset: str, values: Mapping[str, Any], search_path: Sequence[str]) -> Iterable[str]:
    folders = presets.folders_of(search_path)
    if presets.find(preset, folders) is None:
        if len(folders) < len(search_path):  # the search path names packages, where only Hydra can look
            return []
        return [f"{presets.GROUP}={preset!r} is no preset; there are {', '.join(presets.names(folders))}."]
    if wrong := presets.problems(preset, folders):
        return wrong
    prefix = KEY_PREFIX + "."
    own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    chosen = presets.section(preset, folders, KEY_PREFIX) | own
    if presets.is_from_outside(preset, folders) or chosen.get("rule_module"):
        return []  # the start's check imports the rule, and looks at its knobs
    knobs = TrustRegionKnobs()
    for name in knob_names():
        if name in chosen and "${" not in str(chosen[name]):
            setattr(knobs, name, chosen[name])
    return knob_problems(knobs)
