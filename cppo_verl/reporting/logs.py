"""Reads verl's file logger: one JSON object a line, ``{"step": int, "data": {metric: number}}``, one file a start.

A resumed run adds a file, and verl validates before it trains on: the first record of a resumed start repeats the step
of the checkpoint with validation metrics alone. So a later start replaces an earlier one's step, except where all it
logged there is validation, which it adds to the step.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cppo_verl import jsonlines
from cppo_verl.atomic import writable
from cppo_verl.errors import UserError
from cppo_verl.reporting.metrics import VALIDATION
from cppo_verl.reporting.settings import settings_beside
from cppo_verl.reporting.text import count

LARGEST_STEP = 2**53  # beyond it a step would not be exact as a JSON number


class LogError(UserError, ValueError):
    """A log is missing, empty or damaged; the message names the file, what was found and the remedy."""


class NoStepsError(LogError):
    """There is a run's directory or log, and no step in it: a run that was not started, or died before its first."""


@dataclass(frozen=True)
class Run:
    """One run as the report sees it, read from ``place``.

    Attributes:
        settings: short name -> value, from config.yaml (``cppo_verl.reporting.settings``); empty without one.
        frame: one row a step (index ``step``, ascending, unique), one float64 column a metric; NaN where a step did not
            log the metric, or logged NaN.
        files: what it was merged from, by start. notes: sentences about what is odd in the log.
        nonfinite: metric -> ascending steps at which it was logged as NaN or infinite.
    """

    name: str
    settings: Mapping[str, object]
    frame: pd.DataFrame
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    nonfinite: Mapping[str, Sequence[int]] = field(default_factory=dict)
    place: Path | None = None


def read_run(run_dir: Path | str, skip_bad_lines: bool = False) -> Run:
    """The merged log and the settings of a run: of its directory (``logs/*.jsonl`` inside), a directory that holds
    jsonl directly, or one jsonl file.

    Raises:
        LogError: nothing to read, no steps, or a damaged line before the last of its file, unless ``skip_bad_lines``
            leaves such lines out, counted.
    """
    place = Path(run_dir).resolve()
    files = find_logs(place)
    settings, told = settings_beside(place)
    notes = list(told)
    if len({re.sub(r"[-_.0-9]+$", "", path.stem) for path in files}) > 1:
        notes.append(f"These logs lie together and are merged as one run's, by name: {listing(files)}.")
    rows: dict[int, dict[str, float]] = {}
    origin: dict[int, Path] = {}  # of each step, the start that trained it
    lowest: list[int] = []  # step of each start
    for path in files:
        found = read_start(path, skip_bad_lines, notes)
        lowest.append(min(found, default=LARGEST_STEP))
        for step, numbers in found.items():
            if step in rows and all(name.startswith(VALIDATION) for name in numbers):
                rows[step] |= numbers
            else:
                rows[step], origin[step] = numbers, path
    for number, path in enumerate(files):
        back = min(lowest[number + 1 :], default=LARGEST_STEP)
        if left := [step for step in rows if origin[step] == path and step > back]:
            which = f"step {left[0]} is" if len(left) == 1 else f"steps {min(left)} to {max(left)} are"
            notes.append(f"{path.name}: {which} of before the run went back to step {back}, and not logged again.")
    if not rows:
        raise NoStepsError(f"no steps in {listing(files)} of {place}. Is the run past its first? {' '.join(notes)}")
    rows = dict(sorted(rows.items()))
    nonfinite: dict[str, list[int]] = {}
    for step, numbers in rows.items():
        for name in (name for name, value in numbers.items() if not math.isfinite(value)):
            nonfinite.setdefault(name, []).append(step)
    for name, steps in sorted(nonfinite.items()):
        values = f"{count(len(steps), 'logged value')} {'is' if len(steps) == 1 else 'are'}"
        notes.append(f"{name}: {values} NaN or infinite and not drawn.")
    frame = pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="step"), dtype="float64").sort_index(axis=1)
    name = writable(place.stem if place.is_file() else place.name)
    return Run(name, settings, frame, tuple(files), tuple(notes), nonfinite, place)


def read_start(path: Path, skip_bad_lines: bool, notes: list[str]) -> dict[int, dict[str, float]]:
    """The numbers of one start by step; what is odd in the file is added to ``notes``. A LogError for a damaged line
    before the last, unless it is to be skipped."""
    found: dict[int, dict[str, float]] = {}
    faults: dict[int, str] = {}  # by line
    before, again = -LARGEST_STEP, False
    line = jsonlines.Line(0)
    for line in jsonlines.lines(path):
        if fault := line.fault or _fault(line.value):
            faults[line.number] = fault
            continue
        step = int(line.value["step"])
        if step < before and not again:
            later = "of steps that were logged twice the later numbers count."
            notes.append(f"{path.name}: after step {before} comes step {step} again; {later}")
            again = True
        before = step
        found.setdefault(step, {}).update(_numbers(line.value["data"]))
    if line.fault:
        del faults[line.number]
        notes.append(f"{path.name}: the last line was torn, as a killed process leaves it, and is left out.")
    if faults and not skip_bad_lines:
        number, why = next(iter(faults.items()))
        raise LogError(f"{path}, line {number}: {why}. --skip-bad-lines leaves such lines out.")
    if faults:
        were = "was" if len(faults) == 1 else "were"
        notes.append(f"{path.name}: {count(len(faults), 'damaged line')} {were} skipped.")
    if not found:
        notes.append(f"{path.name}: holds no step.")
    return found


def _fault(record: Any) -> str:
    """What keeps a line from being a record of verl's file logger."""
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        return 'not a record of verl\'s file logger, {"step": ..., "data": {...}}'
    step = record.get("step")
    if not isinstance(step, (int, float)) or isinstance(step, bool) or not abs(step) <= LARGEST_STEP or step % 1:
        return f"step={step!r} is not a whole number"
    return ""


def _numbers(logged: Mapping[str, object]) -> dict[str, float]:
    """Without texts; names are the same objects in every step."""
    known = {name: value for name, value in logged.items() if value is None or isinstance(value, (int, float))}
    return {sys.intern(name): _to_float(value) for name, value in known.items()}


def _to_float(value: float | None) -> float:
    """null is how verl's logger writes NaN; a whole number that no float holds is infinite."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf if value and value > 0 else -math.inf


def find_logs(place: Path) -> list[Path]:
    """The jsonl files of a run by start: their names in natural order (``metrics-9`` before ``metrics-10``); a LogError
    where ``place`` is missing, holds no log, or holds the logs of several runs."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise LogError(f"{place} does not exist. Give a run directory, or the .jsonl file of verl's file logger.")
    found = sorted((place / "logs").glob("*.jsonl"), key=_natural) or sorted(place.glob("*.jsonl"), key=_natural)
    if not found:
        there = listing(sorted(place.iterdir())) or "an empty directory"
        raise NoStepsError(
            f"no log in {place}: looked for logs/*.jsonl and *.jsonl, found {there}. "
            "Was the run started with 'file' in trainer.logger?"
        )
    if found[0].parent == place and not starts_of_one(found):
        raise LogError(
            f"{place} holds {len(found)} logs, which look like several runs ({listing(found)}). "
            "Give one of these files; starts of one run are named metrics-<start>.jsonl."
        )
    return found


def starts_of_one(paths: Sequence[Path]) -> bool:
    """Whether logs that lie directly in a directory are of one run."""
    return len(paths) == 1 or all(path.name.startswith("metrics-") for path in paths)


def listing(paths: Sequence[Path]) -> str:
    """The first few names."""
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(path.name for path in paths[:4]) + more


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", path.name)]
