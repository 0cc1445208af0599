"""The checks of a plan: those of the run, on its composed config, as far as this Python goes."""

from collections.abc import Sequence

from cppo_verl.launch import command_line
from cppo_verl.launch.sizes import Heads
from recipe import environment


def check(overrides: Sequence[str], heads: Heads) -> tuple[str, list[str]]:
    """What was checked, and one sentence for each thing that stands in the way of the run."""
    if not environment.has_verl():
        found = command_line.problems(overrides, heads)
        return "preset, knobs and sizes. verl is not installed in this Python: its config was not composed", found
    from hydra.errors import HydraException

    from cppo_verl.integration import checks
    from recipe.compose import compose

    try:
        config = compose(list(overrides))
    except HydraException as error:
        return "preset, knobs and sizes. Hydra could not compose the config", [" ".join(str(error).split())]
    found = list(checks.run_problems(config))
    if environment.runs_here():
        return "all that the run checks at its start, on its composed config", [*found, *checks.here_problems(config)]
    return "what the run checks of its composed config. Not this environment, which could not run it", found
