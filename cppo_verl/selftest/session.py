"""Runs the stages one after another, keeps what each left, and goes on where a killed selftest stopped."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cppo_verl import atomic
from cppo_verl.launch import supervise
from cppo_verl.selftest import machine, recipe_script
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.setting import SelftestError, Setting
from cppo_verl.selftest.stages import NAMES, STAGES, Stage
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, Result, judged, show

MARK = "selftest.json"  # an output folder has it, and nothing else is deleted by --fresh
PATIENCE = 60.0  # seconds that a stage's run gets to end by itself when the stage is given up
# nothing of the user's own pytest: no settings, no plug-ins, no cache
PYTEST = (
    "-c",
    "/dev/null",
    "--noconftest",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:warnings",
    "-p",
    "cppo_verl.selftest.plugin",
    "-s",
    "-q",
)
ALONE = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def chosen(stages: str | None, steps: int, recipe: str, model: str) -> list[Stage]:
    """The stages asked for by name, or all, in their own order.

    Raises:
        SelftestError: what was asked for makes no selftest.
    """
    if steps < 3:
        raise SelftestError(f"--steps {steps}: a run is killed after its second step and resumed; give 3 or more")
    if model and not recipe:
        raise SelftestError("--model without --recipe: the model is the recipe's; name one of run_scripts/*.sh")
    names = stages.split(",") if stages is not None else [name for name in NAMES if name != "recipe" or recipe]
    if unknown := [name for name in names if name not in NAMES]:
        raise SelftestError(f"--stages {','.join(unknown)}: no such stage; there are {', '.join(NAMES)}")
    return [stage for stage in STAGES if stage.name in names]


def asked(out: Path, steps: int, recipe: str, model: str) -> tuple[Machine, Setting]:
    """This machine, and what the stages get to know; SelftestError where the recipe's script refuses."""
    here = machine.look(out)
    overrides = recipe_script.overrides(recipe, model, here) if recipe else ()
    return here, Setting(out, here.device or "cpu", here.ranks, here.gpu_gb, steps, recipe, model, overrides)


def listing(wanted: Sequence[Stage], here: Machine, setting: Setting) -> list[str]:
    """What the stages need and take on this machine, two lines each."""
    lines, on_cpu = [], here.device != "cuda"
    for stage in wanted:
        reason = stage.unmet(here, setting, {name: Result(name, HOLDS) for name in stage.needs.after})
        seconds = stage.seconds["cpu" if on_cpu else "cuda"]
        state = "done" if kept(stage, here, setting) else f"about {seconds:.0f} s"
        lines.append(f"{stage.name:12} {state:>12}  {stage.title}")
        lines.append(f"{'':26}needs {stage.needs.said(on_cpu)}" + (f"; not here: {reason}" if reason else ""))
    return lines


def clear(out: Path) -> None:
    """Forget all results in ``out``.

    Raises:
        SelftestError: ``out`` holds something, and no selftest wrote it.
        supervise.AlreadyRunning: a selftest is going on there.
    """
    if not out.exists():
        return
    if any(out.iterdir()) and not (out / MARK).exists():
        raise SelftestError(f"--fresh would delete {out}, which no selftest wrote (it has no {MARK})")
    with supervise.lock(out):
        end_leftovers(out)
        shutil.rmtree(out)


def run(setting: Setting, here: Machine, wanted: Sequence[Stage], say: Callable, report: Callable) -> list[Result]:
    """Results of the wanted stages, in their order; what holds from an earlier call is taken from there.

    Args:
        say: gets a line at a time for a reader.
        report: called with all results so far, before the first stage and after every one.

    Raises:
        supervise.AlreadyRunning: another selftest is using the folder.
    """
    done: dict[str, Result] = {}
    with supervise.lock(setting.out):
        end_leftovers(setting.out)
        report([])
        for number, stage in enumerate(wanted, 1):
            say(f"[{number}/{len(wanted)}] {stage.name}: {stage.title}")
            known = {other.name: other for other in (*STAGES, *wanted)}.values()  # it may come after one not wanted now
            earlier = {s.name: r for s in known if (r := done.get(s.name) or kept(s, here, setting)) is not None}
            done[stage.name] = earlier.get(stage.name) or _one(stage, here, setting, earlier)
            for line in told(done[stage.name]):
                say(f"      {line}")
            report(list(done.values()))
    return list(done.values())


def _one(stage: Stage, here: Machine, setting: Setting, earlier: dict[str, Result]) -> Result:
    reason = stage.unmet(here, setting, earlier)
    if reason is not None:
        return Result(stage.name, NOT_RUN, reason=reason)
    result = apart(stage, setting, stage.key(here, setting))
    atomic.write(_place(setting.out, stage.name), json.dumps(result.to_json(), indent=1) + "\n")
    return result


def kept(stage: Stage, here: Machine, setting: Setting) -> Result | None:
    """The stage's result from an earlier call, if it held and nothing that it depends on has changed."""
    result = _read(_place(setting.out, stage.name))
    same = result is not None and result.verdict == HOLDS and result.key == stage.key(here, setting)
    return result if same else None


def apart(stage: Stage, setting: Setting, key: str) -> Result:
    """Run a stage in a process of its own, within its time; nothing of it is left running."""
    folder = setting.out / "stages" / stage.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console, rows = folder / "console.log", folder / "rows.json"
    asked = dataclasses.replace(setting, stage=stage.name, options=dict(stage.options))
    command = [sys.executable, "-u", "-m", "pytest", *PYTEST, "--pyargs", stage.module]
    command += ["--setting", asked.dumps(), "--rows", str(rows)]
    began, reason = time.monotonic(), ""

    def watch() -> None:
        if time.monotonic() - began > stage.limit:
            raise supervise.RunFailed(
                f"it took longer than {stage.limit:.0f} s and was ended.\n{supervise.last_words(console)}"
            )

    try:
        supervise.run(
            command, folder, console, ALONE, watch, stage.limit, tick=0.5, what="its process", patience=PATIENCE
        )
    except supervise.RunFailed as error:
        reason = str(error)
    finally:
        supervise.end_processes(setting.out / "runs" / stage.name)
    left = _read(rows) or Result(stage.name, FAILS, reason="it measured nothing")
    if not reason and left.reason:
        reason = f"{left.reason}\n{supervise.last_words(console)}"
    cleaned = [dataclasses.replace(row, note=machine.clean(row.note)) for row in left.rows]
    return judged(stage.name, cleaned, time.monotonic() - began, machine.clean(reason), key)


def end_leftovers(out: Path) -> None:
    """End what a killed selftest left running in its folders."""
    for folder in (*out.glob("stages/*"), *out.glob("runs/*")):
        supervise.end_processes(folder.resolve(), PATIENCE)


def told(result: Result) -> list[str]:
    """A result in lines for a terminal: the verdict, and what failed."""
    head = result.verdict + (f" ({result.seconds:.0f} s)" if result.seconds else "")
    lines = [f"{head}: {result.reason.splitlines()[0]}" if result.reason else head]
    for row in result.rows:
        if row.verdict == FAILS:
            name, value = ("limit", row.limit) if row.limit is not None else ("expected", row.predicted)
            note = f" ({row.note})" if row.note else ""
            lines.append(f"FAILS {row.what}: {show(row.measured, row.unit)}, {name} {show(value, row.unit)}{note}")
    return lines


def _place(out: Path, name: str) -> Path:
    return out / "results" / f"{name}.json"


def _read(path: Path) -> Result | None:
    """The result in a file; None where there is none, or something else."""
    try:
        return Result.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None
