"""What can be said of a run's Hydra overrides with Python alone, in milliseconds: preset, knobs, sizes.

``integration.checks`` looks at the whole composed config afterwards; this only says the same earlier.
"""

<<<<<<< HEAD
import math
import re
from collections.abc import Iterator, Mapping, Sequence
=======
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
>>>>>>> 613f1b0 (Rules of one's own from outside: entry points, rule_module, knobs and presets checked like ours)
from typing import Any

from cppo_verl import presets
<<<<<<< HEAD
from cppo_verl.launch import sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX, TrustRegionKnobs, knob_names, knob_problems
=======
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs, knob_names, knob_problems

SEARCH_PATH = "hydra.searchpath"
>>>>>>> 613f1b0 (Rules of one's own from outside: entry points, rule_module, knobs and presets checked like ours)

WORDS = {"true": True, "false": False, "null": None, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}

<<<<<<< HEAD

def problems(overrides: Sequence[str], heads: sizes.Heads | None = None) -> list[str]:
    """One sentence for an unknown preset, each knob out of range and each size that no run survives.

    A run without a preset is none of our business.

    Args:
        overrides: as for Hydra; the last one of a key counts.
        heads: of the model, where they are known.
=======
def problems(overrides: Sequence[str]) -> list[str]:
    """One sentence for an unknown preset or for each knob out of range; nothing for a run without a preset.

    A rule from outside has to be imported for it, and torch with it.
>>>>>>> 613f1b0 (Rules of one's own from outside: entry points, rule_module, knobs and presets checked like ours)
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    if presets.GROUP not in given:
        return []
<<<<<<< HEAD
    values = {key: value(text) for key, text in given.items() if "${" not in text}  # interpolations are Hydra's
    return [*_knob_problems(given[presets.GROUP], values), *sizes.problems(values, heads)]


def value(text: str) -> Any:
    """The number, truth value, null or string that Hydra reads in ``text``; lists and the like stay text."""
    text = text.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    quoted = re.fullmatch(r"(['\"])(.*)\1", text, re.DOTALL)
    return quoted[2] if quoted else text


def _knob_problems(preset: str, values: Mapping[str, Any]) -> Iterator[str]:
    if preset not in presets.names():
        yield f"{presets.GROUP}={preset!r} is no preset; there are {', '.join(presets.names())}."
        return
    prefix = KEY_PREFIX + "."
    chosen = _knobs(preset)
    chosen |= {key.removeprefix(prefix): values[key] for key in values if key.startswith(prefix)}
    knobs = TrustRegionKnobs()
    for name in knob_names():
        if name in chosen:
            setattr(knobs, name, chosen[name])
    yield from knob_problems(knobs)


def _knobs(preset: str) -> dict[str, Any]:
    """The knobs that a preset sets, over those of the presets it builds on: scalars, one a line of its file."""
    text = (presets.FOLDER / f"{preset}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for parent in re.findall(r"^  - (\w+)", text, re.MULTILINE):  # under ``defaults``
        found |= _knobs(parent) if parent != "_self_" else {}
    for name, scalar in re.findall(r"^      (\w+): ([^#\n]*)", text, re.MULTILINE):
        if name in knob_names() and "${" not in scalar:
            found[name] = value(scalar)
    return found
=======
    search_path = _value(given.get(SEARCH_PATH, "")) or []
    folders = presets.folders_of(search_path)
    if presets.find(preset, folders) is None:
        if len(folders) < len(search_path):
            return []  # Hydra can look into packages
        return [f"{presets.GROUP}={preset!r} is no preset; there are {', '.join(presets.names(folders))}."]
    prefix = KEY_PREFIX + "."
    values = _knobs(preset, folders)
    values |= {key.removeprefix(prefix): _value(text) for key, text in given.items() if key.startswith(prefix)}
    if values.get("rule_module") or presets.is_from_outside(preset, folders):
        try:
            return list(_problems_from_outside(values, folders))
        except KnobError as error:
            return str(error).splitlines()
    return list(_knob_problems(TrustRegionKnobs(), values))


def _problems_from_outside(values: Mapping[str, Any], folders: Sequence[Path]) -> Iterator[str]:
    """The same for a rule that may not be ours.

    Raises:
        KnobError: its module cannot be imported.
    """
    from cppo_verl.trust_region import extensions
    from cppo_verl.trust_region.rules import RULES, VERL_LOSSES, knobs_of_rule

    mode, module = str(values.get("loss_mode")), values.get("rule_module")
    module = module and extensions.resolve(str(module), [*folders, Path.cwd()])
    extensions.bring(mode, module)
    if mode not in RULES and mode not in VERL_LOSSES:
        yield extensions.unknown_rule(mode, module)
    yield from _knob_problems(knobs_of_rule(mode)(), values)


def _knob_problems(knobs: TrustRegionKnobs, values: Mapping[str, Any]) -> Iterator[str]:
    for name in knob_names(type(knobs)):
        if name in values and "${" not in str(values[name]):  # interpolations are Hydra's
            setattr(knobs, name, values[name])
    yield from knob_problems(knobs)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # Hydra says more about it than we could
        return text


def _knobs(preset: str, folders: Sequence[Path]) -> dict[str, Any]:
    composed = presets.settings(preset, folders)
    for key in KEY_PREFIX.split("."):
        composed = composed.get(key) or {}
    return dict(composed)
>>>>>>> 613f1b0 (Rules of one's own from outside: entry points, rule_module, knobs and presets checked like ours)
