"""What a selftest was asked for and where it runs: what a stage gets to know, in its own process too."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cppo_verl.errors import UserError


class SelftestError(UserError):
    """The selftest, or a stage of it, cannot go on; the message says why."""

    status = 2


@dataclass(frozen=True)
class Setting:
    """A stage's input.

    Attributes:
        out: the selftest's folder. device: ``cuda`` or ``cpu``, where the rules are computed.
        ranks: GPUs of this machine, or how many ranks stand for them on the CPU.
        gpu_gb: memory of the smallest GPU; 0 without one.
        steps: of the runs of the tiny model. recipe, model, overrides: of the stage ``recipe``; empty without.
        stage, options: name and options of the stage at hand.
    """

    out: Path
    device: str
    ranks: int
    gpu_gb: float = 0.0
    steps: int = 4
    recipe: str = ""
    model: str = ""
    overrides: tuple[str, ...] = ()
    stage: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU stands in for GPUs, with everything in miniature."""
        return self.device == "cpu"

    @property
    def data(self) -> Path:
        """Folder of the arithmetic data."""
        return self.out / "tiny" / "data"

    @property
    def tiny_model(self) -> Path:
        """Folder of the tiny model."""
        return self.out / "tiny" / "model"

    @property
    def run(self) -> Path:
        """Run directory of the stage at hand."""
        return self.out.resolve() / "runs" / self.stage

    def dumps(self) -> str:
        """As JSON, for another process."""
        return json.dumps({**asdict(self), "out": str(self.out)})

    @classmethod
    def loads(cls, text: str) -> "Setting":
        """Inverse of ``dumps``."""
        content = json.loads(text)
        return cls(**{**content, "out": Path(content["out"]), "overrides": tuple(content["overrides"])})
