"""What there is to measure, from stages.yaml: what each stage shows, needs and takes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from cppo_verl.selftest import machine
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import HOLDS, Result


@dataclass(frozen=True)
class Needs:
    """What a stage cannot do without.

    Attributes:
        ranks: GPUs, or ranks on the CPU. host_gb, gpu_gb, disk_gb: free memory and space.
        packages: module names. after: stages that must have held.
    """

    ranks: int = 1
    host_gb: float = 1.0
    gpu_gb: float = 1.0
    disk_gb: float = 0.1
    packages: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def said(self, on_cpu: bool) -> str:
        """In words."""
        device = f"{self.ranks} {'rank' if on_cpu else 'GPU'}{'s' * (self.ranks > 1)}" if self.ranks else "no device"
        memory = [f"{self.gpu_gb:g} GB a GPU"] if self.ranks and not on_cpu else []
        after = [f"after {name}" for name in self.after]
        return ", ".join([device, f"{self.host_gb:g} GB memory", *memory, *self.packages, *after])


@dataclass(frozen=True)
class Stage:
    """One stage: a pytest file, by its module's name, and what stages.yaml says of it."""

    name: str
    title: str
    module: str
    seconds: Mapping[str, float]
    limit: float
    needs: Needs = Needs()
    options: Mapping[str, object] = field(default_factory=dict)

    def unmet(self, here: Machine, setting: Setting, done: Mapping[str, Result]) -> str | None:
        """Why it cannot run on this machine; None when it can."""
        needs = self.needs
        if self.name == "recipe" and not setting.recipe:
            return "no --recipe was given"
        if needs.ranks and not here.device:
            return "this machine has no GPU (without one, VERL_PLATFORM=cpu runs everything in miniature)"
        if needs.ranks > here.ranks:
            return f"it needs {needs.ranks} GPUs and this machine has {here.ranks}"
        if missing := [name for name in needs.packages if not machine.has_package(name)]:
            return f"not installed: {', '.join(missing)}"
        room = {"GB of free memory": (needs.host_gb, here.host_gb), "GB of free disk": (needs.disk_gb, here.disk_gb)}
        if here.device == "cuda":
            room["GB a GPU"] = (needs.gpu_gb, here.gpu_gb)
        for what, (wanted, found) in room.items():
            if wanted > found:
                return f"it needs {wanted:g} {what} and there are {found:.1f}"
        failed = [name for name in needs.after if name not in done or done[name].verdict != HOLDS]
        return f"it comes after {', '.join(failed)}, which did not hold" if failed else None

    def key(self, here: Machine, setting: Setting) -> str:
        """What its result depends on, as a hash: code, versions, machine, options."""
        of_recipe = () if self.name == "recipe" else ("recipe", "model", "overrides")
        asked = {f.name: getattr(setting, f.name) for f in fields(setting) if f.name not in ("out", *of_recipe)}
        facts = {name: text for name, text in here.facts.items() if name != "source"}
        content = [self.name, self.module, dict(self.options), asked, facts, machine.code()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _listed() -> tuple[Stage, ...]:
    content = yaml.safe_load((Path(__file__).parent / "assets/stages.yaml").read_text(encoding="utf-8"))
    return tuple(
        Stage(
            name,
            given["title"],
            f"cppo_verl.selftest.{given['file']}",
            given["seconds"],
            given["limit"],
            Needs(**given.get("needs", {})),
            given.get("options", {}),
        )
        for name, given in content.items()
    )


STAGES = _listed()
NAMES = tuple(stage.name for stage in STAGES)
