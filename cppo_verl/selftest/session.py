"""Runs the stages one after another, each in a process of its own and within its time."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

from cppo_verl import jsonlines
from cppo_verl.launch import supervise
from cppo_verl.selftest.setting import SelftestError, Setting
from cppo_verl.selftest.stages import STAGES, Stage
from cppo_verl.selftest.table import FAILS, NOT_RUN, Result, Row, judged, show

PATIENCE = 60.0  # seconds that a stage's run gets to end by itself when the stage is given up
# nothing of the user's own pytest: no settings, no plug-ins, no cache
PYTEST = "-c /dev/null --noconftest -p no:cacheprovider -p no:warnings -p cppo_verl.selftest.plugin -s -q --pyargs"
ALONE = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def chosen(stages: str | None, steps: int, recipe: str, model: str) -> list[Stage]:
    """The stages asked for by name with those that they come after, or all, in their own order.

    Raises:
        SelftestError: what was asked for makes no selftest.
    """
    if steps < 3:
        raise SelftestError(f"--steps {steps}: a run is killed after its second step and resumed; give 3 or more")
    if model and not recipe:
        raise SelftestError("--model without --recipe: the model is the recipe's; name one of run_scripts/*.sh")
    names = stages.split(",") if stages is not None else [name for name in STAGES if name != "recipe" or recipe]
    if unknown := [name for name in names if name not in STAGES]:
        raise SelftestError(f"--stages {','.join(unknown)}: no such stage; there are {', '.join(STAGES)}")
    before = [earlier for name in names for earlier in STAGES[name].after]
    return [stage for stage in STAGES.values() if stage.name in (*names, *before)]


def listing(wanted: Sequence[Stage], setting: Setting) -> list[str]:
    """What the stages need and take on this machine, two lines each."""
    lines = []
    for stage in wanted:
        reason = dataclasses.replace(stage, after=()).unmet(setting, {})
        seconds = stage.seconds["cpu" if setting.on_cpu else "cuda"]
        lines.append(f"{stage.name:12} {f'about {seconds:.0f} s':>12}  {stage.title}")
        lines.append(f"{'':26}needs {stage.needs(setting.on_cpu)}" + (f"; not here: {reason}" if reason else ""))
    return lines


def run(
    setting: Setting, wanted: Sequence[Stage], say: Callable[[str], object], report: Callable[[list[Result]], object]
) -> list[Result]:
    """Results of the wanted stages, in their order.

    Args:
        say: gets a line at a time for a reader.
        report: called with all results so far, before the first stage and after every one.

    Raises:
        supervise.AlreadyRunning: another selftest is using the folder.
    """
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
            for line in told(result):
                say(f"      {line}")
            report(list(done.values()))
    return list(done.values())


def apart(stage: Stage, setting: Setting) -> Result:
    """Run a stage in a process of its own, within its time; nothing of it is left running."""
    asked = dataclasses.replace(setting, stage=stage.name, options=dict(stage.options))
    asked.logs.mkdir(parents=True, exist_ok=True)
    console, rows = asked.logs / "console.log", asked.logs / "rows.jsonl"
    for earlier in (console, rows):
        earlier.unlink(missing_ok=True)
    rows.touch()
    command = [sys.executable, "-u", "-m", "pytest", *PYTEST.split(), stage.module]
    environment = {**ALONE, "CPPO_VERL_SELFTEST": asked.dumps()}
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
    return judged(stage.name, found, time.monotonic() - began, reason)


def told(result: Result) -> list[str]:
    """A result in lines for a terminal: the verdict, and what failed."""
    head = result.verdict + (f" ({result.seconds:.0f} s)" if result.seconds else "")
    lines = [f"{head}: {result.reason.splitlines()[0]}" if result.reason else head]
    for row in result.rows:
        if row.verdict == FAILS:
            name, value = ("limit", row.limit) if row.limit is not None else ("expected", row.predicted)
            wanted = f", {name} {show(value, row.unit)}" if value is not None else ""
            note = f" ({row.note})" if row.note else ""
            lines.append(f"FAILS {row.what}: {show(row.measured, row.unit)}{wanted}{note}")
    return lines
