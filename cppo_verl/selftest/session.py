"""What there is to measure (stages.yaml) on which machine, and how: a stage after another, each in its own process."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml

from cppo_verl import jsonlines
from cppo_verl.integration import cpu
from cppo_verl.launch import gitstate, supervise
from cppo_verl.selftest.stage import FAILS, HOLDS, NOT_RUN, Result, Row, SelftestError, Setting, show

PATIENCE = 60.0  # seconds that a stage's run gets to end by itself when the stage is given up
# nothing of the user's own pytest: no settings, no plug-ins, no cache
PYTEST = "-c /dev/null --noconftest -p no:cacheprovider -p no:warnings -p cppo_verl.selftest.plugin -s -q --pyargs"
ALONE = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

# name and GB of each GPU, printed by a process of its own, for torch may open a CUDA context to say so
SEEN_BY_TORCH = """
import json, torch
found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([[each.name, each.total_memory / 1e9] for each in found]))
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: a pytest file, and what it cannot do without; the fields are those of assets/stages.yaml."""

    name: str
    title: str
    module: str
    seconds: Mapping[str, float]
    limit: float
    needs: Mapping[str, float]
    packages: Sequence[str] = ()
    after: Sequence[str] = ()
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def unmet(self, setting: Setting, done: Mapping[str, Result] | None = None) -> str:
        """Why it cannot run on this machine, or with ``done`` after these results; empty when it can."""
        if "ranks" in self.needs and not setting.device:
            return "this machine has no GPU (without one, VERL_PLATFORM=cpu runs everything in miniature)"
        if absent := [name for name in self.packages if find_spec(name) is None]:
            return f"not installed: {', '.join(absent)}"
        for what, wanted in self.needs.items():
            if wanted > setting.room.get(what, wanted):
                return f"it needs {wanted:g} {what} and there are {setting.room[what]:.3g}"
        failed = [name for name in self.after if done is not None and (name not in done or done[name].verdict != HOLDS)]
        return f"it comes after {', '.join(failed)}, which did not hold" if failed else ""


FILE = Path(__file__).parent / "assets/stages.yaml"
STAGES = {name: Stage(name, **given) for name, given in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()}


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


def chosen(stages: str | None) -> list[Stage]:
    """The stages asked for by name with those that they come after, or all, in their own order.
    SelftestError: there is no such stage."""
    names = list(STAGES) if stages is None else stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise SelftestError(f"--stages {','.join(unknown)}: no such stage; there are {', '.join(STAGES)}")
    before = [earlier for name in names for earlier in STAGES[name].after]
    return [stage for stage in STAGES.values() if stage.name in (*names, *before)]


def listing(wanted: Sequence[Stage], setting: Setting) -> list[str]:
    """What the stages need and take on this machine, two lines each."""
    lines = []
    for stage in wanted:
        reason, seconds = stage.unmet(setting), stage.seconds["cpu" if setting.on_cpu else "cuda"]
        lines.append(f"{stage.name:12} {f'about {seconds:.0f} s':>12}  {stage.title}")
        needs = [f"{what}: {wanted:g}" for what, wanted in stage.needs.items() if what in setting.room]
        needs += [*stage.packages, *(f"after {name}" for name in stage.after)]
        lines.append(f"{'':26}needs {', '.join(needs)}" + (f"; not here: {reason}" if reason else ""))
    return lines


def run(
    setting: Setting, wanted: Sequence[Stage], say: Callable[[str], object], report: Callable[[list[Result]], object]
) -> list[Result]:
    """Results of the wanted stages, in their order. ``say`` gets a line at a time for a reader, ``report`` all results
    so far, before the first stage and after every one. AlreadyRunning: another selftest is using the folder."""
    done: dict[str, Result] = {}
    with supervise.lock(setting.out):
        for folder in (*setting.out.glob("stages/*"), *setting.out.glob("runs/*")):  # what a killed selftest left
            supervise.end_processes(folder, PATIENCE)
        report([])
        for number, stage in enumerate(wanted, 1):
            say(f"[{number}/{len(wanted)}] {stage.name}: {stage.title}")
            reason = stage.unmet(setting, done)
            result = Result(stage.name, NOT_RUN, reason=reason) if reason else apart(stage, setting)
            done[stage.name] = result
            took, why = f" ({result.seconds:.0f} s)" if result.seconds else "", result.reason.partition("\n")[0]
            say(f"      {result.verdict}{took}{': ' if why else ''}{why}")
            for row in result.rows:
                if row.verdict == FAILS:
                    limit = show(row.predicted if row.limit is None else row.limit, row.unit)
                    note = f" ({row.note})" if row.note else ""
                    say(f"      FAILS {row.what}: {show(row.measured, row.unit)}, limit {limit}{note}")
            report(list(done.values()))
    return list(done.values())


def apart(stage: Stage, setting: Setting) -> Result:
    """Run a stage in a process of its own, within its time; nothing of it is left running. It fails with a failed row,
    without any row, and when something ended it."""
    asked = dataclasses.replace(setting, stage=stage.name, options=dict(stage.options))
    asked.logs.mkdir(parents=True, exist_ok=True)
    console, rows = asked.logs / "console.log", asked.logs / "rows.jsonl"
    for earlier in (console, rows):
        earlier.write_bytes(b"")
    command = [sys.executable, "-u", "-m", "pytest", *PYTEST.split(), stage.module]
    environment = {**ALONE, "CPPO_VERL_SELFTEST": json.dumps(dataclasses.asdict(asked), default=str)}
    began, reason = time.monotonic(), ""

    def watch() -> None:
        if time.monotonic() - began > stage.limit:
            said = f"it took longer than {stage.limit:.0f} s and was ended"
            raise supervise.RunFailed(f"{said}.\n{supervise.last_words(console)}")

    try:
        supervise.run(
            command, asked.logs, console, environment, watch, stage.limit, 0.5, what="its process", patience=PATIENCE
        )
    except supervise.RunFailed as error:
        reason = str(error)
    finally:
        supervise.end_processes(asked.run)
    found = [Row(**row) for row in jsonlines.read(rows)[0]]
    reason = reason or ("" if found else "it measured nothing")
    failed = bool(reason) or any(row.verdict == FAILS for row in found)
    return Result(stage.name, FAILS if failed else HOLDS, found, time.monotonic() - began, reason)
