"""What can be said of a run's Hydra overrides with Python alone, in milliseconds: preset, knobs, sizes.

``integration.checks`` looks at the whole composed config afterwards; this only says the same earlier.
"""

from collections.abc import Iterator, Mapping, Sequence
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


def _knob_problems(preset: str, values: Mapping[str, Any], search_path: Sequence[str]) -> Iterator[str]:
    folders = presets.folders_of(search_path)
    if presets.find(preset, folders) is None:
        if len(folders) == len(search_path):  # only Hydra can look into packages
            yield f"{presets.GROUP}={preset!r} is no preset; there are {', '.join(presets.names(folders))}."
        return
    wrong = presets.problems(preset, folders)
    if wrong:
        yield from wrong
        return
    chosen = presets.section(preset, folders, KEY_PREFIX)
    prefix = KEY_PREFIX + "."
    chosen |= {key.removeprefix(prefix): values[key] for key in values if key.startswith(prefix)}
    kind: type[TrustRegionKnobs] = TrustRegionKnobs
    if presets.is_from_outside(preset, folders) or chosen.get("rule_module"):
        try:
            kind = _bring(chosen, folders)
        except KnobError as error:
            yield str(error)
            return
    knobs = kind()
    for name in knob_names(kind):
        if name in chosen and "${" not in str(chosen[name]):
            setattr(knobs, name, chosen[name])
    yield from knob_problems(knobs)


def _bring(chosen: Mapping[str, Any], folders: Sequence[Path]) -> type[TrustRegionKnobs]:
    """The class of the knobs of a rule that may come from outside.

    Raises:
        KnobError: its module cannot be imported, or does not define it.
    """
    from cppo_verl.trust_region import extensions
    from cppo_verl.trust_region.rules import RULES, VERL_LOSSES, knobs_of_rule

    mode, module = str(chosen.get("loss_mode")), chosen.get("rule_module")
    module = module and extensions.resolve(str(module), [*folders, Path.cwd()])
    extensions.bring(mode, module)
    if mode not in RULES and mode not in VERL_LOSSES:
        raise KnobError(extensions.unknown_rule(mode, module))
    return knobs_of_rule(mode)
