"""The checks of a plan: those of the run, on its composed config, as far as this Python goes."""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from cppo_verl import presets
from cppo_verl.launch import command_line, sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX, TrustRegionKnobs, knob_names, knob_problems
from recipe import environment, settings


def on_paper(overrides: Sequence[str], heads: sizes.Heads) -> list[str]:
    """One sentence for each number that no run survives: preset, knobs and sizes, with Python alone if need be."""
    if find_spec("hydra") is not None:
        return command_line.problems(overrides, heads)
    values = settings.parse(overrides)
    return [*_knob_problems(values), *sizes.problems(values, heads)]


def _knob_problems(values: dict[str, Any]) -> Iterator[str]:
    preset, knobs = str(values.get(presets.GROUP)), TrustRegionKnobs()
    if preset not in presets.names():
        yield f"{presets.GROUP}={preset!r} is no preset; there are {', '.join(presets.names())}."
        return
    given = {key.removeprefix(f"{KEY_PREFIX}."): value for key, value in values.items() if key.startswith(KEY_PREFIX)}
    for name, value in {**_knobs(preset), **given}.items():
        if name in knob_names() and "${" not in str(value):
            setattr(knobs, name, value)
    yield from knob_problems(knobs)


def _knobs(preset: str) -> dict[str, Any]:
    """What one of our presets sets, over those that it builds on: scalars, one a line of its file."""
    text = (presets.FOLDER / f"{preset}.yaml").read_text(encoding="utf-8")
    parents = [parent for parent in re.findall(r"^  - (\w+)", text, re.MULTILINE) if parent != "_self_"]
    found = {name: value for parent in parents for name, value in _knobs(parent).items()}
    lines = re.findall(r"^      (\w+): ([^#\n]*)", text, re.MULTILINE)
    return found | settings.parse([f"{name}={scalar.strip()}" for name, scalar in lines])


def check(overrides: Sequence[str], heads: sizes.Heads) -> tuple[str, list[str]]:
    """What was checked, and one sentence for each thing that stands in the way of the run."""
    if not environment.has_verl():
        said = "preset, knobs and sizes. verl is not installed in this Python: its config was not composed"
        return said, on_paper(overrides, heads)
    from cppo_verl.integration import checks
    from cppo_verl.launch.overrides import OverrideError, compose

    try:
        config = compose(overrides)
    except OverrideError as error:
        return "preset, knobs and sizes. Hydra could not compose the config", [" ".join(str(error).split())]
    found = list(checks.run_problems(config))
    if environment.runs_here():
        return "all that the run checks at its start, on its composed config", [*found, *checks.here_problems(config)]
    return "what the run checks of its composed config. Not this environment, which could not run it", found
