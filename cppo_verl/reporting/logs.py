"""Reads verl's file logger: one JSON object a line, ``{"step": int, "data": {metric: number}}``, one file a start.

A resumed run adds a file, and verl validates before it trains on: the first record of a resumed start repeats the step
of the checkpoint with validation metrics alone. So a later start replaces an earlier one's step, except where all it
logged there is validation, which it adds to the step. Lines are read one at a time; only the
numbers stay in memory, eight bytes each.
"""

import math
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cppo_verl import jsonlines
from cppo_verl.errors import UserError
from cppo_verl.reporting.metrics import VALIDATION
from cppo_verl.reporting.settings import settings_beside
from cppo_verl.reporting.text import clean, count

LARGEST_STEP = 2**53  # beyond it a step would not be exact as a JSON number


class LogError(UserError, ValueError):
    """A log is missing, empty or damaged; the message names the file, what was found and the remedy."""


class NoStepsError(LogError):
    """There is a run's directory or log, and no step in it: a run that was not started, or died before its first."""


@dataclass
class LogFile:
    """One start: ``records`` good lines, whether its last line was ``torn`` by a killed process, how many damaged lines
    were ``skipped`` on request, where its steps began ``again``: (the step, the one before)."""

    path: Path
    records: int = 0
    torn: bool = False
    skipped: int = 0
    again: tuple[int, int] | None = None
    lowest: int = LARGEST_STEP  # of its steps


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
    files: tuple[LogFile, ...] = ()
    notes: tuple[str, ...] = ()
    nonfinite: Mapping[str, Sequence[int]] = field(default_factory=dict)
    place: Path | None = None


@dataclass
class Row:
    """A step's numbers, at the places that ``Merge.names`` gives; ``odd`` are the metrics logged as NaN or infinite."""

    start: int
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    odd: set[str] = field(default_factory=set)


class Merge:
    """The starts of a run laid over each other, in the order in which they are read."""

    def __init__(self, skip_bad_lines: bool) -> None:
        self.skip_bad_lines = skip_bad_lines
        self.files: list[LogFile] = []
        self.names: dict[str, int] = {}  # a metric's place in a row
        self.rows: dict[int, Row] = {}
        self.texts: set[str] = set()  # metrics whose values are no numbers

    def read(self, path: Path) -> None:
        file, before = LogFile(path), -LARGEST_STEP
        self.files.append(file)
        validated: dict[int, dict[str, float]] = {}  # what this start logged at a step that it did not train (yet)
        torn: jsonlines.Line | None = None  # judged once it is known whether a line follows
        for line in jsonlines.lines(path):
            if torn is not None:
                self._skip(file, torn.number, torn.fault)
            torn = line if line.fault else None
            if line.fault:
                continue
            try:
                step, data = _step_and_data(line.value)
            except ValueError as error:
                self._skip(file, line.number, str(error))
                continue
            file.records += 1
            file.lowest = min(file.lowest, step)
            file.again = file.again or ((step, before) if step < before else None)
            before = step
            self._add(step, self._numbers(data), validated)
        file.torn = torn is not None

    def _skip(self, file: LogFile, line: int, why: str) -> None:
        if not self.skip_bad_lines:
            raise LogError(f"{file.path}, line {line}: {why}. --skip-bad-lines leaves such lines out.")
        file.skipped += 1

    def _numbers(self, data: Mapping[str, object]) -> dict[str, float]:
        # null is how verl's logger writes NaN
        numeric = {name: x for name, x in data.items() if x is None or isinstance(x, (int, float))}
        self.texts |= data.keys() - numeric.keys()
        return {sys.intern(name): _to_float(value) for name, value in numeric.items()}

    def _add(self, step: int, data: dict[str, float], validated: dict[int, dict[str, float]]) -> None:
        start = len(self.files) - 1
        row = self.rows.setdefault(step, Row(start))
        if row.start != start:
            if data and all(name.startswith(VALIDATION) for name in data):
                validated.setdefault(step, {}).update(data)
            else:
                row = self.rows[step] = Row(start)
                data = {**validated.pop(step, {}), **data}
        places = [self.names.setdefault(name, len(self.names)) for name in data]
        row.numbers.extend(repeat(math.nan, max(places, default=-1) + 1 - len(row.numbers)))
        for place, (name, value) in zip(places, data.items(), strict=True):
            row.numbers[place] = value
            (row.odd.discard if math.isfinite(value) else row.odd.add)(name)

    def nonfinite(self) -> dict[str, list[int]]:
        names = sorted(set().union(*(row.odd for row in self.rows.values())))
        return {name: sorted(step for step, row in self.rows.items() if name in row.odd) for name in names}

    def take_frame(self) -> pd.DataFrame:
        """``Run.frame``; empties the rows on the way."""
        steps, names = sorted(self.rows), sorted(self.names)
        values = np.full((len(names), len(steps)), np.nan)
        order = [self.names[name] for name in names]
        for number, step in enumerate(steps):
            row = self.rows.pop(step).numbers
            row.extend(repeat(math.nan, len(names) - len(row)))
            values[:, number] = np.frombuffer(row)[order]
        return pd.DataFrame(values.T, index=pd.Index(steps, name="step"), columns=names, copy=False)

    def notes(self) -> Iterator[str]:
        if len({re.sub(r"[-_.0-9]+$", "", file.path.stem) for file in self.files}) > 1:
            names = listing(file.path for file in self.files)
            yield f"These logs lie together and are merged as one run's, by name: {names}."
        for start, file in enumerate(self.files):
            name = file.path.name
            if file.torn:
                yield f"{name}: the last line was torn, as a killed process leaves it, and is left out."
            if file.skipped:
                yield f"{name}: {count(file.skipped, 'damaged line')} {'was' if file.skipped == 1 else 'were'} skipped."
            if not file.records:
                yield f"{name}: holds no step."
            if file.again:
                yield (
                    f"{name}: after step {file.again[1]} comes step {file.again[0]} again; of steps that were "
                    "logged twice the later numbers count."
                )
            resumed = min((later.lowest for later in self.files[start + 1 :]), default=LARGEST_STEP)
            left = sorted(step for step, row in self.rows.items() if row.start == start and step > resumed)
            if left:
                span = f"Step {left[0]} comes" if len(left) == 1 else f"Steps {left[0]} to {left[-1]} come"
                yield f"{span} from {name}, before the run went back to step {resumed}, and not logged again."
        for name, steps in self.nonfinite().items():
            values = f"{count(len(steps), 'logged value')} {'is' if len(steps) == 1 else 'are'}"
            yield f"{name}: {values} NaN or infinite and not drawn."
        if self.texts:
            yield f"Not numbers, and left out: {', '.join(sorted(self.texts))}."


def read_run(run_dir: Path | str, skip_bad_lines: bool = False) -> Run:
    """The merged log and the settings of a run: of its directory (``logs/*.jsonl`` inside), a directory that holds
    jsonl directly, or one jsonl file.

    Raises:
        LogError: nothing to read, no steps, or a damaged line before the last of its file, unless ``skip_bad_lines``
            leaves such lines out, counted.
    """
    place = Path(run_dir).resolve()
    merge = Merge(skip_bad_lines)
    for path in find_logs(place):
        merge.read(path)
    if not merge.rows:
        files = merge.files
        torn, skipped = sum(file.torn for file in files), sum(file.skipped for file in files)
        raise NoStepsError(
            f"no steps in {listing(file.path for file in files)} of {place}: {len(files)} files, {torn} torn last "
            f"lines, {skipped} skipped lines. Is the run past its first step?"
        )
    settings, notes = settings_beside(place)
    notes, odd = (*notes, *merge.notes()), merge.nonfinite()
    name = clean(place.stem if place.is_file() else place.name)
    return Run(name, settings, merge.take_frame(), tuple(merge.files), notes, odd, place)


def find_logs(place: Path) -> list[Path]:
    """The jsonl files of a run by start: their names in natural order (``metrics-9`` before ``metrics-10``); a LogError
    where ``place`` is missing, holds no log, or holds the logs of several runs."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise LogError(f"{place} does not exist. Give a run directory, or the .jsonl file of verl's file logger.")
    found = sorted((place / "logs").glob("*.jsonl"), key=_natural) or sorted(place.glob("*.jsonl"), key=_natural)
    if not found:
        raise NoStepsError(
            f"no log in {place}: looked for logs/*.jsonl and *.jsonl, found "
            f"{listing(sorted(place.iterdir())) or 'an empty directory'}. "
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


def _step_and_data(record: Any) -> tuple[int, Mapping[str, object]]:
    if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
        raise ValueError('not a record of verl\'s file logger, {"step": ..., "data": {...}}')
    step = record.get("step")
    if not isinstance(step, (int, float)) or isinstance(step, bool) or not abs(step) <= LARGEST_STEP or step % 1:
        raise ValueError(f"step={step!r} is not a whole number")
    return int(step), record["data"]


def _to_float(value: float | None) -> float:
    if value is None:
        return math.nan
    return value if isinstance(value, float) else float(Decimal(value))  # where float(value) raises, it is infinite


def listing(paths: Iterable[Path]) -> str:
    """The first few names."""
    names = [path.name for path in paths]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", path.name)]
