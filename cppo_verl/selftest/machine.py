"""What this machine is: for deciding which stages it can run, for the page, and for the key of a kept result.

No environment variable is read but those that choose verl's plug-ins and platform; no user, host or path is kept.
"""

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cppo_verl.launch import gitstate

ROOT = Path(__file__).resolve().parents[2]
CODE = ("cppo_verl", "data_prep", "recipe", "hydra_plugins")
PLUGINS = ("VERL_PLATFORM", "VERL_USE_EXTERNAL_PLUGINS", "VERL_USE_EXTERNAL_MODULES")
# printed by a process of its own, for torch may open a CUDA context to say so
SEEN_BY_TORCH = """
import json, torch
found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([[each.name, each.total_memory] for each in found]))
"""
SECRET = re.compile(r"(_KEY|_TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """A machine as the stages see it.

    Attributes:
        device: ``cuda``, ``cpu`` (verl's CPU platform was asked for), or empty: a machine without a device.
        gpus: names in the order of their numbers. gpu_gb: memory of the smallest.
        host_gb, disk_gb: free memory of the host, free space where the results go.
        facts: label -> text, for the page.
    """

    device: str
    gpus: tuple[str, ...] = ()
    gpu_gb: float = 0.0
    host_gb: float = 0.0
    disk_gb: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """GPUs, or two ranks that stand for them on the CPU."""
        return 2 if self.device == "cpu" else len(self.gpus)


def look(out: Path) -> Machine:
    """This machine; ``out`` is where the results will go."""
    on_cpu = os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
    found = [] if on_cpu else gpus()
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    return Machine(
        "cpu" if on_cpu else "cuda" if found else "",
        tuple(name for name, _ in found),
        min((size for _, size in found), default=0.0),
        psutil.virtual_memory().available / 1e9,
        psutil.disk_usage(str(place)).free / 1e9,
        {**_system(), "GPUs": "; ".join(f"{name}, {size:.0f} GB" for name, size in found) or "none", **_software()},
    )


def gpus() -> list[tuple[str, float]]:
    """Name and GB of each GPU that torch sees; none where torch is missing or fails."""
    done = subprocess.run([sys.executable, "-c", SEEN_BY_TORCH], capture_output=True, text=True, timeout=300)
    try:
        return [(name, size / 1e9) for name, size in json.loads(done.stdout.splitlines()[-1])]
    except (ValueError, IndexError):
        return []


def gpu_memory_in_use() -> list[float]:
    """GB on each GPU, by whatever process; nothing without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return [float(mib) * 2**20 / 1e9 for mib in done.stdout.splitlines()]
    except (OSError, subprocess.TimeoutExpired, ValueError):  # [N/A]
        return []


def has_package(name: str) -> bool:
    """Whether Python finds a module of that name; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@functools.cache
def code() -> str:
    """A hash of this package's own files, so that results of other code are not taken for this one's."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml", ".csv") and path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def clean(text: str) -> str:
    """Text of a log without the home folder, and without the value of any variable that is named like a secret."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _system() -> dict[str, str]:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    processor = found[1].strip() if found else platform.processor() or "unknown"
    memory = psutil.virtual_memory().total / 1e9
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": f"{processor}, {os.cpu_count()} cores, {memory:.0f} GB",
    }


def _software() -> dict[str, str]:
    """Python, versions, commit, and what chooses verl's platform and further modules, as it is set."""
    state = gitstate.state()
    dirty, versions = state["dirty"], state["versions"]
    assert isinstance(dirty, list) and isinstance(versions, dict)
    source = "an installed copy"
    if state["commit"] is not None:
        changed = f"{len(dirty)} files changed" if dirty else "clean"
        source = f"{str(state['commit'])[:12]} on {state['branch']}, {changed}"
    plugins = {name: os.environ[name] for name in PLUGINS if name in os.environ}
    return {"Python": platform.python_version(), **versions, "source": f"{source}, code {code()}", **plugins}
