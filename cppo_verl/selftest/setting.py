"""What a selftest was asked for and the machine it runs on: what a stage gets to know, in its own process too."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cppo_verl.doctor import inputs
from cppo_verl.errors import UserError
from cppo_verl.launch import gitstate

# name and GB of each GPU, printed by a process of its own, for torch may open a CUDA context to say so
SEEN_BY_TORCH = """
import json, torch
found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([[each.name, each.total_memory / 1e9] for each in found]))
"""
# On the CPU a recipe keeps its method and flags, its lengths and batches are a toy's; a variable that is set stays.
MINIATURE = {"PROMPTS": "4", "N": "4", "MINIBATCH": "2", "PROMPT_TOKENS": "48", "RESPONSE_TOKENS": "64"}
MINIATURE |= {"NGPUS_PER_NODE": "1", "SP": "1", "TP": "1", "TOKENS_PER_GPU": "2048", "GPU_SHARE": "0.05"}


class SelftestError(UserError):
    """The selftest, or a stage of it, cannot go on; the message says why."""

    status = 2


@dataclass(frozen=True)
class Setting:
    """A stage's input.

    Attributes:
        out: the selftest's folder. device: ``cuda``, ``cpu`` (verl's CPU platform was asked for), or empty without one.
        ranks: GPUs of this machine, or how many ranks stand for them on the CPU.
        gpu_gb, host_gb, disk_gb: memory of the smallest GPU, free memory of the host, free space in ``out``.
        steps: of the runs of the tiny model. recipe, model, overrides: of the stage ``recipe``; empty without.
        stage, options: name and options of the stage at hand.
    """

    out: Path
    device: str
    ranks: int
    gpu_gb: float = 0.0
    host_gb: float = 0.0
    disk_gb: float = 0.0
    steps: int = 4
    recipe: str = ""
    model: str = ""
    overrides: Sequence[str] = ()
    stage: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU stands in for GPUs, with everything in miniature."""
        return self.device != "cuda"

    @property
    def tiny(self) -> Path:
        """Folder of the tiny model, ``model``, and of its data, ``data``."""
        return self.out / "tiny"

    @property
    def logs(self) -> Path:
        """Folder of the stage's logs and rows."""
        return self.out / "stages" / self.stage

    @property
    def run(self) -> Path:
        """Run directory of the stage at hand."""
        return self.out / "runs" / self.stage

    def dumps(self) -> str:
        """As JSON, for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> "Setting":
        """Inverse of ``dumps``."""
        content = json.loads(text)
        return cls(**{**content, "out": Path(content["out"])})


def here(out: Path, steps: int = 4, recipe: str = "", model: str = "") -> tuple[Setting, dict[str, str]]:
    """What was asked for on this machine, and label -> text about the machine for the page, without any variable,
    user, host or path; SelftestError: the recipe's script refuses."""
    on_cpu = os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
    found = [] if on_cpu else gpus()
    device, ranks = ("cpu", 2) if on_cpu else ("cuda" if found else "", len(found))
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(place))
    state: dict[str, Any] = gitstate.state()
    facts = {
        "system": f"{platform.uname().system} {platform.release()}, {platform.machine()}",
        "host": f"{os.cpu_count()} cores, {memory.total / 1e9:.0f} GB",
        "GPUs": "; ".join(f"{name}, {size:.0f} GB" for name, size in found) or "none",
        "Python": platform.python_version(),
        **state["versions"],
        "source": f"{state['commit'] or 'an installed copy'}, {len(state['dirty'])} files changed",
    }
    smallest = min((size for _, size in found), default=0.0)
    overrides = recipe_overrides(recipe, model, device, ranks) if recipe else []
    room = (smallest, memory.available / 1e9, disk.free / 1e9)
    return Setting(out, device, ranks, *room, steps, recipe, model, overrides), facts


def gpus() -> list[tuple[str, float]]:
    """Name and GB of each GPU that torch sees; none where torch is missing or fails."""
    done = subprocess.run([sys.executable, "-c", SEEN_BY_TORCH], capture_output=True, text=True, timeout=300)
    try:
        return [(name, size) for name, size in json.loads(done.stdout.splitlines()[-1])]
    except (ValueError, IndexError):
        return []


def recipe_overrides(name: str, model: str, device: str, ranks: int) -> list[str]:
    """What run_scripts/NAME.sh gives verl in this environment, before the stage's own changes.
    SelftestError: no such script, or the script refuses."""
    defaults = MINIATURE if device == "cpu" else {"NGPUS_PER_NODE": str(max(ranks, 1))}
    try:
        return inputs.recipe_overrides(name, model, defaults)
    except UserError as error:
        raise SelftestError(f"--recipe {name}: {error}") from None
