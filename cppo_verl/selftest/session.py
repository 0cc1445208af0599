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
from cppo_verl.selftest import machine
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.stages import STAGES, Stage
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, Result, judged, show

MARK = "selftest.json"  # an output folder has it, and nothing else is deleted by --fresh
PATIENCE = 60.0  # seconds that a stage's run gets to end by itself when the stage is given up
Say = Callable[[str], None]


class SelftestError(RuntimeError):
    """The selftest cannot start; the message says why."""


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


def run(setting: Setting, here: Machine, wanted: Sequence[Stage], say: Say, report: Callable) -> list[Result]:
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
            result = _one(stage, here, setting, earlier)
            done[stage.name] = result
            for line in told(result):
                say(f"      {line}")
            report(list(done.values()))
    return list(done.values())


def _one(stage: Stage, here: Machine, setting: Setting, earlier: dict[str, Result]) -> Result:
    found = earlier.get(stage.name)
    if found is not None:
        return found
    reason = stage.unmet(here, setting, earlier)
    if reason is not None:
        return Result(stage.name, NOT_RUN, reason=reason)
    result = apart(stage, setting, stage.key(here, setting))
    _store(setting.out, result)
    return result


def kept(stage: Stage, here: Machine, setting: Setting) -> Result | None:
    """The stage's result from an earlier call, if it held and nothing that it depends on has changed."""
    try:
        result = Result.from_json(json.loads(_place(setting.out, stage.name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if result.verdict == HOLDS and result.key == stage.key(here, setting) else None


def apart(stage: Stage, setting: Setting, key: str) -> Result:
    """Run a stage in a process of its own, within its time; nothing of it is left running."""
    folder = setting.out / "stages" / stage.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console, rows = folder / "console.log", folder / "rows.json"
    asked = dataclasses.replace(setting, stage=stage.name, options=dict(stage.options))
    command = [sys.executable, "-u", "-m", "cppo_verl.selftest.child", stage.module, asked.dumps(), str(rows)]
    began, reason = time.monotonic(), ""

    def watch() -> None:
        if time.monotonic() - began > stage.limit:
            raise TimeoutError(
                f"it took longer than {stage.limit:.0f} s and was ended.\n{supervise.last_words(console)}"
            )

    try:
        supervise.run(command, folder, console, {}, watch, stage.limit, tick=0.5, what="its process", patience=PATIENCE)
    except (supervise.RunFailed, TimeoutError) as error:
        reason = str(error)
    finally:
        supervise.end_processes(setting.out / "runs" / stage.name)
    seconds = time.monotonic() - began
    try:
        left = Result.from_json(json.loads(rows.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        left = Result(stage.name, FAILS, reason="it measured nothing")
    if not reason and left.reason:
        reason = f"{left.reason}\n{supervise.last_words(console)}"
    cleaned = [dataclasses.replace(row, note=machine.clean(row.note)) for row in left.rows]
    return judged(stage.name, cleaned, seconds, machine.clean(reason), key)


def end_leftovers(out: Path) -> None:
    """End what a killed selftest left running in its folders."""
    for folder in (*out.glob("stages/*"), *out.glob("runs/*")):
        supervise.end_processes(folder.resolve(), PATIENCE)


def told(result: Result) -> list[str]:
    """A result in lines for a terminal: the verdict, and what failed."""
    head = f"{result.verdict}" + (f" ({result.seconds:.0f} s)" if result.seconds else "")
    lines = [f"{head}: {result.reason.splitlines()[0]}" if result.reason else head]
    for row in result.rows:
        if row.verdict == FAILS:
            limit = f", limit {show(row.limit, row.unit)}" if row.limit is not None else ""
            limit = limit or (f", expected {show(row.predicted, row.unit)}" if row.predicted is not None else "")
            lines.append(
                f"FAILS {row.what}: {show(row.measured, row.unit)}{limit}" + (f" ({row.note})" if row.note else "")
            )
    return lines


def _place(out: Path, name: str) -> Path:
    return out / "results" / f"{name}.json"


def _store(out: Path, result: Result) -> None:
    atomic.write(_place(out, result.stage), json.dumps(result.to_json(), indent=1) + "\n")
