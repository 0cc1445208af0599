"""Reads verl's file logger: one JSON object a line, ``{"step": int, "data": {metric: number}}``, one file a start.

A resumed run adds a file, and verl validates before it trains on: the first record of a resumed start repeats the step
of the checkpoint with validation metrics alone. So a later start replaces an earlier one's step, except where all it
logged there is validation, which it adds to the step. Lines are read one at a time and have a longest length; only the
numbers stay in memory, eight bytes each.
"""

import math
import re
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cppo_verl import jsonlines
from cppo_verl.errors import UserError
from cppo_verl.reporting.metrics import VALIDATION
from cppo_verl.reporting.settings import settings_beside
from cppo_verl.reporting.text import clean

LARGEST_STEP = 2**53  # beyond it a step would not be exact as a JSON number
REMEDY = "--skip-bad-lines leaves such lines out."


class LogError(UserError, ValueError):
    """A log is missing, empty or damaged; the message names the file, what was found and the remedy."""


class NoStepsError(LogError):
    """There is a run's directory or log, and no step in it: a run that was not started, or died before its first."""


@dataclass
class LogFile:
    """What one file held: ``records`` good lines, ``steps``, whether its last line was ``torn`` by a killed process,
    how many damaged lines were ``skipped`` on request, where its steps began ``again``: (the step, the one before)."""

    path: Path
    records: int = 0
    steps: set[int] = field(default_factory=set)
    torn: bool = False
    skipped: int = 0
    again: tuple[int, int] | None = None


@dataclass(frozen=True)
class Run:
    """One run as the report sees it.

    Attributes:
        name: name of the run's directory, or of its log file.
        settings: short name -> value, from config.yaml (``cppo_verl.reporting.settings``); empty without one.
        frame: one row a step (index ``step``, ascending, unique), one float64 column a metric; NaN where a step did not
            log the metric, or logged NaN.
        files: the files it was merged from, by start.
        notes: sentences for the reader about what is odd in the log.
        nonfinite: metric -> ascending steps at which it was logged as NaN or infinite.
        place: the directory or file it was read from.
    """

    name: str
    settings: Mapping[str, object]
    frame: pd.DataFrame
    files: tuple[LogFile, ...] = ()
    notes: tuple[str, ...] = ()
    nonfinite: Mapping[str, np.ndarray] = field(default_factory=dict)
    place: Path | None = None


class Columns:
    """Rows by step; NaN where a step did not log a metric. ``odd`` has the steps that logged it as NaN or infinite."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}  # a metric's place in a row
        self.rows: dict[int, array[float]] = {}  # as long as they need to be
        self.odd: defaultdict[str, set[int]] = defaultdict(set)

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Lay ``row`` over what ``step`` holds."""
        kept = self.rows.setdefault(step, array("d"))
        places = [self.at.setdefault(name, len(self.at)) for name in row]
        kept.extend(repeat(math.nan, max(places, default=-1) + 1 - len(kept)))
        for place, (name, value) in zip(places, row.items(), strict=True):
            kept[place] = value
            (self.odd[name].discard if math.isfinite(value) else self.odd[name].add)(step)

    def forget(self, step: int) -> None:
        """Take out what ``step`` holds; the step stays."""
        self.rows[step] = array("d")
        for steps in self.odd.values():
            steps.discard(step)

    def take_frame(self) -> pd.DataFrame:
        """One row a step, ascending, one column a metric, by name; empties the rows on the way."""
        steps, names = sorted(self.rows), sorted(self.at)
        values = np.full((len(names), len(steps)), np.nan)
        order = [self.at[name] for name in names]
        for number, step in enumerate(steps):
            row = self.rows.pop(step)
            row.extend(repeat(math.nan, len(names) - len(row)))
            values[:, number] = np.frombuffer(row)[order]
        return pd.DataFrame(values.T, index=pd.Index(steps, name="step"), columns=names, copy=False)


class Merge:
    """The starts of a run laid over each other, in the order in which they are read."""

    def __init__(self, skip_bad_lines: bool = False) -> None:
        self.skip_bad_lines = skip_bad_lines
        self.columns = Columns()
        self.files: list[LogFile] = []
        self.texts: Counter[str] = Counter()  # values that are no numbers, by metric
        self.origin: dict[int, int] = {}  # which start trained a step

    def read(self, path: Path) -> None:
        """Add a start.

        Raises:
            LogError: a damaged line before the end of the file, or one that is no record; names file and line.
        """
        tally, before = LogFile(path), -LARGEST_STEP
        self.files.append(tally)
        validated: dict[int, dict[str, float]] = {}  # what this start logged at a step that it did not train (yet)
        torn: jsonlines.Line | None = None  # judged once it is known whether a line follows
        for line in jsonlines.lines(path):
            if torn is not None:
                self._skip(tally, torn.number, torn.fault)
            torn = line if line.fault else None
            if line.fault:
                continue
            try:
                step, data = step_and_data(line.value)
            except ValueError as error:
                self._skip(tally, line.number, str(error))
                continue
            tally.records += 1
            tally.steps.add(step)
            tally.again = tally.again or ((step, before) if step < before else None)
            before = step
            self._add(step, self._numbers(data), validated)
        tally.torn = torn is not None

    def _add(self, step: int, row: dict[str, float], validated: dict[int, dict[str, float]]) -> None:
        start = len(self.files) - 1
        if self.origin.setdefault(step, start) != start:
            if row and all(name.startswith(VALIDATION) for name in row):
                validated.setdefault(step, {}).update(row)
            else:
                self.columns.forget(step)
                row = {**validated.pop(step, {}), **row}
                self.origin[step] = start
        self.columns.update(step, row)

    def _skip(self, tally: LogFile, line: int, why: str) -> None:
        if not self.skip_bad_lines:
            raise LogError(f"{tally.path}, line {line}: {why}. {REMEDY}")
        tally.skipped += 1

    def _numbers(self, data: Mapping[str, object]) -> dict[str, float]:
        """The numeric metrics of a record as floats; null, which is how verl's logger writes NaN, is NaN."""
        row = {}
        for name, value in data.items():
            if value is None or isinstance(value, (int, float)):
                row[sys.intern(name)] = to_float(value)
            else:
                self.texts[name] += 1
        return row

    def notes(self) -> Iterator[str]:
        """What a reader should know of how the log came about."""
        stems = {re.sub(r"[-_.0-9]+$", "", file.path.stem) for file in self.files}
        if len(stems) > 1:
            names = listing(file.path for file in self.files)
            yield f"These logs lie together and are merged as one run's, by name: {names}."
        for start, file in enumerate(self.files):
            name = file.path.name
            if file.torn:
                yield f"{name}: the last line was torn, as a killed process leaves it, and is left out."
            if file.skipped:
                yield f"{name}: {file.skipped} damaged line{'s were' if file.skipped > 1 else ' was'} skipped."
            if not file.records:
                yield f"{name}: holds no step."
            if file.again:
                yield (
                    f"{name}: after step {file.again[1]} comes step {file.again[0]} again; of steps that were "
                    "logged twice the later numbers count."
                )
            yield from self._leftovers(start)

    def _leftovers(self, start: int) -> Iterator[str]:
        """Steps of a start beyond the point from which a later one took over, and not logged again since."""
        resumed = min((min(later.steps) for later in self.files[start + 1 :] if later.steps), default=LARGEST_STEP)
        left = sorted(step for step, trained in self.origin.items() if trained == start and step > resumed)
        if left:
            span = f"Step {left[0]} comes" if len(left) == 1 else f"Steps {left[0]} to {left[-1]} come"
            name = self.files[start].path.name
            yield f"{span} from {name}, before the run went back to step {resumed}, and not logged again."


def read_run(run_dir: Path | str, skip_bad_lines: bool = False) -> Run:
    """The merged log and the settings of a run.

    Args:
        run_dir: a run directory (``logs/*.jsonl`` inside), a directory that holds jsonl directly, or one jsonl file.
        skip_bad_lines: leave damaged lines out, counted, instead of raising.

    Raises:
        LogError: nothing to read, no steps, or a damaged line that is not the last of its file.
    """
    place = Path(run_dir).resolve()
    merge = Merge(skip_bad_lines)
    for path in find_logs(place):
        merge.read(path)
    if not merge.columns.rows:
        torn, skipped = sum(file.torn for file in merge.files), sum(file.skipped for file in merge.files)
        raise NoStepsError(
            f"no steps in {listing(find_logs(place), whole=True)}: {len(merge.files)} files, 0 records, {torn} torn "
            f"last lines, {skipped} skipped lines. Is the run past its first step?"
        )
    settings, notes = settings_beside(place)
    odd = {name: np.array(sorted(steps)) for name, steps in sorted(merge.columns.odd.items()) if steps}
    frame = merge.columns.take_frame()
    notes += (*merge.notes(), *_value_notes(odd, merge.texts))
    name = clean(place.stem if place.is_file() else place.name)
    return Run(name, settings, frame, tuple(merge.files), notes, odd, place)


def find_logs(place: Path) -> list[Path]:
    """The jsonl files of a run by start: their names in natural order (``metrics-9`` before ``metrics-10``).

    Raises:
        LogError: ``place`` is missing, holds no log, or holds the logs of several runs.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise LogError(f"{place} does not exist. Give a run directory, or the .jsonl file of verl's file logger.")
    found = sorted((place / "logs").glob("*.jsonl"), key=_natural) or sorted(place.glob("*.jsonl"), key=_natural)
    if not found:
        there = sorted(path.name + "/" * path.is_dir() for path in place.iterdir())
        shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
        raise NoStepsError(
            f"no log in {place}: looked for logs/*.jsonl and *.jsonl, found {shown or 'an empty directory'}. "
            "Was the run started with 'file' in trainer.logger?"
        )
    if found[0].parent == place and not starts_of_one(found):
        raise LogError(
            f"{place} holds {len(found)} logs, which look like several runs ({listing(found)}). "
            "Give one of these files; starts of one run are named metrics-<start>.jsonl."
        )
    return found


def starts_of_one(paths: list[Path]) -> bool:
    """Whether logs that lie directly in a directory are of one run."""
    return len(paths) == 1 or all(path.name.startswith("metrics-") for path in paths)


def step_and_data(record: Any) -> tuple[int, Mapping[str, object]]:
    """The two parts of a record.

    Raises:
        ValueError: the record is not one of verl's file logger; says why.
    """
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        raise ValueError('not a record of verl\'s file logger, {"step": ..., "data": {...}}')
    step = record.get("step")
    if not isinstance(step, (int, float)) or isinstance(step, bool) or not abs(step) <= LARGEST_STEP or step % 1:
        raise ValueError(f"step={step!r} is not a whole number")
    return int(step), record["data"]


def to_float(value: float | None) -> float:
    """A number of JSON as float64."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:  # an integer beyond float64
        return math.inf if value is not None and value > 0 else -math.inf


def listing(paths: Iterable[Path], whole: bool = False) -> str:
    """The first few names (with ``whole`` the paths)."""
    names = [str(path) if whole else path.name for path in paths]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", path.name)]


def _value_notes(odd: Mapping[str, np.ndarray], texts: Mapping[str, int]) -> Iterator[str]:
    for name, steps in odd.items():
        yield f"{name}: {len(steps)} logged value{'s are' if len(steps) > 1 else ' is'} NaN or infinite and not drawn."
    if texts:
        yield f"Not numbers, and left out: {', '.join(sorted(texts))}."
