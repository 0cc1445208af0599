"""What this Python could run, found without importing torch: where a plan is made is often not where it will run."""

import os
import sys
from importlib import metadata
from importlib.util import find_spec

from cppo_verl.launch import sizes


def has_verl() -> bool:
    """Whether verl's config can be composed here."""
    return find_spec("verl") is not None and find_spec("hydra") is not None


def runs_here() -> bool:
    """Whether a run could start in this environment: verl with a torch for GPUs, or verl's CPU platform asked for."""
    return has_verl() and (os.environ.get("VERL_PLATFORM") == "cpu" or not metadata.version("torch").endswith("+cpu"))


def attention(wanted: str, sequence_parallel: str) -> str:
    """The attention behind ``ATTN=wanted``.

    ``auto`` is flash attention, which every GPU recipe should have. Where it is not installed, and nothing splits
    sequences over GPUs, it is torch's own sdpa: right, but slower. Elsewhere than in a run's environment nobody knows.
    """
    if wanted != "auto":
        return wanted
    if sequence_parallel != "1" or not runs_here() or _flash_attention_loads():
        return sizes.VERLS_ATTENTION
    return "sdpa"


def _flash_attention_loads() -> bool:
    if find_spec("flash_attn") is None and find_spec("kernels") is None:
        return False
    from cppo_verl.integration.attention import missing

    return missing(sizes.VERLS_ATTENTION) is None


if __name__ == "__main__":  # python -m recipe.environment ATTN SP, with a line on stderr for a makeshift
    wanted, parallel = sys.argv[1:]
    chosen = attention(wanted, parallel)
    if chosen != wanted and chosen == "sdpa":
        print(
            "ATTN=auto: flash attention is not installed here, so sdpa, which is slower (docs/gpu.md)", file=sys.stderr
        )
    print(chosen)
