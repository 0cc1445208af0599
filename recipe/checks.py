"""What this Python can check of a run, found without importing torch: a plan is often not made where it will run.

``python -m recipe.checks ATTN SP`` prints the attention behind run_scripts/train.sh's ATTN.
"""

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec

from cppo_verl.launch import sizes
from cppo_verl.launch.overrides import OverrideError, compose


def has_verl() -> bool:
    """Whether verl's config can be composed here."""
    return find_spec("verl") is not None and find_spec("hydra") is not None


def runs_here() -> bool:
    """Whether a run could start in this environment: verl with a torch for GPUs, or verl's CPU platform asked for."""
    return has_verl() and (os.environ.get("VERL_PLATFORM") == "cpu" or not metadata.version("torch").endswith("+cpu"))


def check(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """What was checked, and one sentence for each thing that stands in the way of the run."""
    if not has_verl():
        return "sizes. verl is not installed in this Python: its config was not composed", []
    from cppo_verl.integration import checks

    try:
        config = compose(overrides)
    except OverrideError as error:
        return "sizes. Hydra could not compose the config", [" ".join(str(error).split())]
    found = list(checks.run_problems(config))
    if runs_here():
        return "all that the run checks at its start, on its composed config", [*found, *checks.here_problems(config)]
    return "what the run checks of its composed config. Not this environment, which could not run it", found


def attention(sequence_parallel: str) -> str:
    """The attention behind ``ATTN=auto``: flash attention, which every GPU recipe should have.

    Where it is not installed, and nothing splits sequences over GPUs, it is torch's own sdpa: right, but slower.
    Elsewhere than in a run's environment nobody knows.
    """
    if sequence_parallel != "1" or not runs_here():
        return sizes.VERLS_ATTENTION
    if find_spec("flash_attn") is not None or find_spec("kernels") is not None:
        from cppo_verl.integration.attention import missing

        if missing(sizes.VERLS_ATTENTION) is None:
            return sizes.VERLS_ATTENTION
    said = "ATTN=auto: flash attention is not installed here, so sdpa, which is slower (docs/gpu.md)"
    print(said, file=sys.stderr)
    return "sdpa"


if __name__ == "__main__":
    print(attention(sys.argv[2]) if sys.argv[1] == "auto" else sys.argv[1])
