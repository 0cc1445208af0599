"""What the doctor was asked about, as numbers that the checks compare with."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GB = 1e9


def default_run_dir() -> Path:
    """Where a run started here would write."""
    return Path(os.environ.get("RUN") or os.environ.get("WORK") or "runs").absolute()


@dataclass(frozen=True)
class Asked:
    """The run that is meant; without ``--recipe`` verl's defaults.

    Attributes:
        model: folder or hub id.
        recipe: the recipe's name.
        config: verl's composed config of the recipe.
        problems: what its script or Hydra said instead of a config.
        gpu_share: of a GPU's memory, for vLLM.  gpus_per_node: that the run wants.
        checkpoints: that lie on disk at most.  checkpoint_bytes: of one.
        run_dir: where they lie.
    """

    model: str | None = None
    recipe: str | None = None
    config: Any = None
    problems: tuple[str, ...] = ()
    gpu_share: float = 0.5
    gpus_per_node: int | None = None
    checkpoints: int = 2
    checkpoint_bytes: float | None = None
    run_dir: Path = field(default_factory=default_run_dir)
