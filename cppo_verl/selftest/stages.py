"""What there is to measure, from stages.yaml: what each stage shows, needs and takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import yaml

from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import HOLDS, Result


@dataclass(frozen=True)
class Stage:
    """One stage: a pytest file, and what it cannot do without.

    Attributes:
        module: the file, as a module. seconds: expected on ``cpu`` and ``cuda``. limit: seconds that it may take.
        ranks: GPUs, or ranks on the CPU. host_gb, gpu_gb, disk_gb: free memory and space.
        packages: module names. after: stages that must have held. options: what the file needs to know.
    """

    name: str
    title: str
    module: str
    seconds: Mapping[str, float]
    limit: float
    ranks: int = 1
    host_gb: float = 1.0
    gpu_gb: float = 1.0
    disk_gb: float = 0.1
    packages: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)

    def needs(self, on_cpu: bool) -> str:
        """In words."""
        device = f"{self.ranks} {'rank' if on_cpu else 'GPU'}{'s' * (self.ranks > 1)}" if self.ranks else "no device"
        memory = [f"{self.gpu_gb:g} GB a GPU"] if self.ranks and not on_cpu else []
        after = [f"after {name}" for name in self.after]
        return ", ".join([device, f"{self.host_gb:g} GB memory", *memory, *self.packages, *after])

    def unmet(self, setting: Setting, done: Mapping[str, Result]) -> str:
        """Why it cannot run on this machine; empty when it can."""
        if self.name == "recipe" and not setting.recipe:
            return "no --recipe was given"
        if self.ranks and not setting.device:
            return "this machine has no GPU (without one, VERL_PLATFORM=cpu runs everything in miniature)"
        if self.ranks > setting.ranks:
            return f"it needs {self.ranks} GPUs and this machine has {setting.ranks}"
        if missing := [name for name in self.packages if find_spec(name) is None]:
            return f"not installed: {', '.join(missing)}"
        memory = (self.gpu_gb if self.ranks and not setting.on_cpu else 0, setting.gpu_gb, "GB a GPU")
        host = (self.host_gb, setting.host_gb, "GB of free memory")
        for wanted, found, what in (host, (self.disk_gb, setting.disk_gb, "GB of free disk"), memory):
            if wanted > found:
                return f"it needs {wanted:g} {what} and there are {found:.1f}"
        failed = [name for name in self.after if name not in done or done[name].verdict != HOLDS]
        return f"it comes after {', '.join(failed)}, which did not hold" if failed else ""


FILE = Path(__file__).parent / "assets/stages.yaml"
STAGES = {name: Stage(name, **given) for name, given in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()}
