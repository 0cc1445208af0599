"""What can be said of a run's Hydra overrides with Python alone, in milliseconds: preset, knobs, sizes.

``integration.checks`` looks at the whole composed config afterwards; this only says the same earlier.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cppo_verl import presets
from cppo_verl.launch import sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs, knob_names, knob_problems

SEARCH_PATH = "hydra.searchpath"
WORDS = {"true": True, "false": False, "null": None, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def problems(overrides: Sequence[str], heads: sizes.Heads | None = None) -> list[str]:
    """One sentence for an unknown preset, each knob out of range and each size that no run survives.

    A run without a preset is none of our business. A rule from outside is imported for it, and torch with it.

    Args:
        overrides: as for Hydra; the last one of a key counts.
        heads: of the model, where they are known.
    """
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    if presets.GROUP not in given:
        return []
    values = {key: value(text) for key, text in given.items() if "${" not in text}  # interpolations are Hydra's
    search_path = re.findall(r"[^][,\s'\"]+", given.get(SEARCH_PATH, ""))
    return [*_knob_problems(given[presets.GROUP], values, search_path), *sizes.problems(values, heads)]


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
    outside = presets.is_from_outside(preset, folders)
    chosen = presets.section(preset, folders, KEY_PREFIX) if outside else _knobs(preset)
    prefix = KEY_PREFIX + "."
    chosen |= {key.removeprefix(prefix): values[key] for key in values if key.startswith(prefix)}
    kind: type[TrustRegionKnobs] = TrustRegionKnobs
    if outside or chosen.get("rule_module"):
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
