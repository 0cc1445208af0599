"""What can be said of a run's Hydra overrides before anything heavy is imported: preset and knobs, in milliseconds.

``integration.checks`` looks at the whole composed config afterwards; this only says the same earlier.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from cppo_verl import presets
from cppo_verl.trust_region.knobs import KEY_PREFIX, TrustRegionKnobs, knob_names, knob_problems


def problems(overrides: Sequence[str]) -> list[str]:
    """One sentence for an unknown preset or for each knob out of range; nothing for a run without a preset."""
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    preset = given.get(presets.GROUP)
    if preset is None:
        return []
    if preset not in presets.names():
        return [f"{presets.GROUP}={preset!r} is no preset; there are {', '.join(presets.names())}."]
    prefix = KEY_PREFIX + "."
    values = _knobs(preset)
    values |= {key.removeprefix(prefix): _value(text) for key, text in given.items() if key.startswith(prefix)}
    knobs = TrustRegionKnobs()
    for name in knob_names():
        if name in values and "${" not in str(values[name]):  # interpolations are Hydra's
            setattr(knobs, name, values[name])
    return list(knob_problems(knobs))


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # Hydra says more about it than we could
        return text


def _knobs(preset: str) -> dict[str, Any]:
    """The knobs that a preset sets, over those of the presets it builds on."""
    composed = yaml.safe_load((presets.FOLDER / f"{preset}.yaml").read_text(encoding="utf-8")) or {}
    inherited: dict[str, Any] = {}
    for parent in composed.get("defaults", ()):
        inherited |= _knobs(parent) if parent != "_self_" else {}
    for key in KEY_PREFIX.split("."):
        composed = composed.get(key) or {}
    return {**inherited, **composed}
