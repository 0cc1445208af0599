"""What a selftest was asked for and the machine it runs on: what a stage gets to know, in its own process too."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cppo_verl.errors import UserError
from cppo_verl.integration import cpu
from cppo_verl.launch import gitstate

# name and GB of each GPU, printed by a process of its own, for torch may open a CUDA context to say so
SEEN_BY_TORCH = """
import json, torch
found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([[each.name, each.total_memory / 1e9] for each in found]))
"""


class SelftestError(UserError):
    """The selftest, or a stage of it, cannot go on; the message says why."""

    status = 2


@dataclass
class Setting:
    """A stage's input.

    Attributes:
        out: the selftest's folder. device: ``cuda``, ``cpu`` (verl's CPU platform was asked for), or empty without one.
        room: what the machine has of the needs of assets/stages.yaml; on the CPU without ``GB a GPU``.
        steps: of the runs of the tiny model.
        stage, options: name and options of the stage at hand.
    """

    out: Path
    device: str
    room: Mapping[str, float]
    steps: int = 4
    stage: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = Path(self.out)  # a text, as it comes to another process

    @property
    def on_cpu(self) -> bool:  # the CPU stands in for GPUs, with everything in miniature
        return self.device != "cuda"

    @property
    def tiny(self) -> Path:  # folders ``model`` and ``data``
        return self.out / "tiny"

    @property
    def logs(self) -> Path:  # of the stage, and its rows
        return self.out / "stages" / self.stage

    @property
    def run(self) -> Path:  # run directory of the stage
        return self.out / "runs" / self.stage


def here(out: Path, steps: int = 4) -> tuple[Setting, dict[str, str]]:
    """What was asked for on this machine, and label -> text about the machine for the page, without any variable,
    user, host or path."""
    gpus = [] if cpu.enabled() else seen_by_torch()
    device = "cpu" if cpu.enabled() else "cuda" if gpus else ""
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(place))
    state: dict[str, Any] = gitstate.state()
    facts = {
        "system": f"{platform.uname().system} {platform.release()}, {platform.machine()}",
        "host": f"{os.cpu_count()} cores, {memory.total / 1e9:.0f} GB",
        "GPUs": "; ".join(f"{name}, {size:.0f} GB" for name, size in gpus) or "none",
        "Python": platform.python_version(),
        **state["versions"],
        "source": f"{state['commit'] or 'an installed copy'}, {len(state['dirty'])} files changed",
    }
    room = {"ranks": 2 if cpu.enabled() else len(gpus), "GB memory": memory.available / 1e9, "GB disk": disk.free / 1e9}
    room |= {"GB a GPU": min(size for _, size in gpus)} if gpus else {}
    return Setting(out, device, room, steps), facts


def seen_by_torch() -> list[tuple[str, float]]:
    """Name and GB of each GPU; none where torch is missing or fails."""
    done = subprocess.run([sys.executable, "-c", SEEN_BY_TORCH], capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
