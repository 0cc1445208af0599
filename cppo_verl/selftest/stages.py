"""The stages of a selftest: what each shows, needs and takes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

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
        device = f"{self.ranks} rank" if on_cpu else f"{self.ranks} GPU"
        parts = [device + "s" * (self.ranks > 1) if self.ranks else "no device", f"{self.host_gb:g} GB memory"]
        if self.ranks and not on_cpu:
            parts.append(f"{self.gpu_gb:g} GB a GPU")
        return ", ".join([*parts, *self.packages, *(f"after {name}" for name in self.after)])


@dataclass(frozen=True)
class Stage:
    """One stage; ``module``'s function ``measure(setting)`` yields its rows, in a process of its own.

    Attributes:
        name: as ``--stages`` takes it. title: what it shows. seconds: expected, by device. limit: seconds it may take.
        options: what the module needs to know beside the setting.
    """

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
        missing = [name for name in needs.packages if not machine.has_package(name)]
        if missing:
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
        asked = {name: value for name, value in json.loads(setting.dumps()).items() if name != "out"}
        if self.name != "recipe":
            asked = {name: value for name, value in asked.items() if name not in ("recipe", "model", "overrides")}
        facts = {name: text for name, text in here.facts.items() if name != "source"}
        content = [self.name, self.module, dict(self.options), asked, facts, machine.code()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _stack(name: str, title: str, seconds: tuple[float, float], ranks: int, packages=(), **options: object) -> Stage:
    """A run of the tiny model through the whole stack; ``seconds`` on the CPU and on GPUs."""
    needs = Needs(ranks, host_gb=6, gpu_gb=8, disk_gb=2, packages=packages, after=("doctor", "tiny"))
    expected = {"cpu": seconds[0], "cuda": seconds[1]}
    return Stage(name, title, "cppo_verl.selftest.stack", expected, 1800, needs, options)


STAGES = (
    Stage(
        "doctor",
        "A run would start here: versions, plug-in, presets, device, vLLM",
        "cppo_verl.selftest.doctor",
        {"cpu": 25, "cuda": 40},
        300,
        Needs(ranks=0),
    ),
    Stage(
        "rules",
        "Every rule on the device decides as its definition in float64 does",
        "cppo_verl.selftest.rules",
        {"cpu": 15, "cuda": 30},
        600,
    ),
    Stage(
        "losses",
        "Gradients inside verl, and the top-K from logits to its divergence",
        "cppo_verl.selftest.losses",
        {"cpu": 20, "cuda": 60},
        600,
        Needs(packages=("verl",), gpu_gb=8),
    ),
    Stage(
        "speed",
        "What the losses and the top-K cost beside verl's own",
        "cppo_verl.selftest.speed",
        {"cpu": 30, "cuda": 40},
        600,
        Needs(packages=("verl",), gpu_gb=30),
    ),
    Stage(
        "tiny",
        "Data and a two-layer Qwen3, made on the spot",
        "cppo_verl.selftest.tiny",
        {"cpu": 60, "cuda": 60},
        900,
        Needs(ranks=0, host_gb=2, packages=("transformers", "pandas")),
    ),
    _stack("one-binary", "One rank, binary divergence", (110, 150), 1, preset="cppo", one=True),
    _stack(
        "one-topk",
        "One rank, top-K divergence, killed and resumed",
        (200, 260),
        1,
        preset="cppo_topk",
        one=True,
        kill=True,
    ),
    _stack("all-binary", "All ranks, binary divergence", (130, 180), 2, preset="cppo"),
    _stack("all-topk", "All ranks, top-K divergence, killed and resumed", (230, 300), 2, preset="cppo_topk", kill=True),
    _stack(
        "all-sp2",
        "All ranks, two to a sequence (Ulysses), top-K divergence",
        (130, 180),
        2,
        ("flash_attn",),
        preset="cppo_topk",
        sequence_parallel=2,
    ),
    Stage(
        "recipe",
        "One step of the recipe at full lengths beside its plan",
        "cppo_verl.selftest.recipe_step",
        {"cpu": 130, "cuda": 1200},
        7200,
        Needs(host_gb=8, gpu_gb=20, disk_gb=2, packages=("verl",), after=("doctor", "tiny")),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
