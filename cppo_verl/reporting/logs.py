"""Reads verl's file logger: one JSON object a line, ``{"step": int, "data": {metric: number}}``, one file a start.

A resumed run adds a file, and verl validates before it trains on: the first record of a resumed start repeats the step
of the checkpoint with validation metrics alone. So a later start replaces an earlier one's step, except where all it
logged there is validation, which it adds to the step. Lines are read one at a time and have a longest length; only the
numbers stay in memory, eight bytes each (``cppo_verl.reporting.columns``).
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd

from cppo_verl.reporting.columns import Columns, Row
from cppo_verl.reporting.names import VALIDATION
from cppo_verl.reporting.settings import CONFIG_FILE, SettingsError, read_settings

LARGEST_STEP = 2**53  # beyond it a step would not be exact as a JSON number
LONGEST_LINE = 16 * 2**20  # bytes; a record of verl's logger has some thousand


class LogError(ValueError):
    """A log is missing, empty or damaged; the message names the file, what was found and the remedy."""


class NoStepsError(LogError):
    """There is a run's directory or log, and no step in it: a run that was not started, or died before its first."""


@dataclass(frozen=True)
class LogFile:
    """What one file held: ``records`` good lines over steps ``first``..``last`` (None without any), whether its last
    line was ``torn`` by a killed process, and how many damaged lines were ``skipped`` on request."""

    path: Path
    records: int
    first: int | None
    last: int | None
    torn: bool
    skipped: int


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
    """

    name: str
    settings: Mapping[str, object]
    frame: pd.DataFrame
    files: tuple[LogFile, ...]
    notes: tuple[str, ...]
    nonfinite: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_run(run_dir: Path | str, skip_bad_lines: bool = False) -> Run:
    """The merged log and the settings of a run.

    Args:
        run_dir: a run directory (``logs/*.jsonl`` inside), a directory that holds jsonl directly, or one jsonl file.
        skip_bad_lines: leave damaged lines out, counted, instead of raising.

    Raises:
        LogError: nothing to read, no steps, or a damaged line that is not the last of its file.
    """
    place = Path(run_dir).resolve()
    paths = find_logs(place)
    merged = Columns()
    origin: dict[int, int] = {}
    files: list[LogFile] = []
    texts: Counter[str] = Counter()
    for start, path in enumerate(paths):
        fresh, tally = read_file(path, skip_bad_lines, texts)
        files.append(tally)
        merged = merge_start(merged, origin, fresh, start)
    if not len(merged):
        raise NoStepsError(f"no steps in {_listing(paths)}: {_tally_sentence(files)}. Is the run past its first step?")
    settings, settings_notes = _settings_of(place)
    odd = merged.nonfinite()
    notes = (*settings_notes, *_file_notes(files), *_leftover_notes(origin, files), *_value_notes(odd, texts))
    name = place.stem if place.is_file() else place.name
    return Run(name, settings, merged.take_frame(), tuple(files), notes, odd)


def find_logs(place: Path) -> list[Path]:
    """The jsonl files of a run by start: their names in natural order (``metrics-9`` before ``metrics-10``).

    Raises:
        LogError: ``place`` is missing, holds no log, or holds the logs of several runs.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise LogError(f"{place} does not exist. Give a run directory, or the .jsonl file of verl's file logger.")
    starts = sorted((place / "logs").glob("*.jsonl"), key=_natural)
    if starts:
        return starts
    direct = sorted(place.glob("*.jsonl"), key=_natural)
    if len(direct) > 1 and not all(path.name.startswith("metrics-") for path in direct):
        raise LogError(
            f"{place} holds {len(direct)} logs, which look like several runs ({_listing(direct)}). "
            "Give one of these files; starts of one run are named metrics-<start>.jsonl."
        )
    if not direct:
        found = sorted(path.name + "/" * path.is_dir() for path in place.iterdir())
        shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        raise NoStepsError(
            f"no log in {place}: looked for logs/*.jsonl and *.jsonl, found {shown or 'an empty directory'}. "
            "Was the run started with 'file' in trainer.logger?"
        )
    return direct


def read_file(path: Path, skip_bad_lines: bool, texts: Counter[str]) -> tuple[Columns, LogFile]:
    """Rows by step of one start, later records of a step over earlier ones; counts values that are text in ``texts``.

    Raises:
        LogError: a damaged line before the end of the file; names file and line.
    """
    rows = Columns()
    records = skipped = 0
    damaged: LogError | None = None  # judged once it is known whether a line follows
    for number, raw in lines(path):
        if damaged is not None:
            skipped += _skip_or_raise(damaged, skip_bad_lines)
            damaged = None
        if len(raw) > LONGEST_LINE:
            damaged = LogError(
                f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB. --skip-bad-lines leaves such lines out."
            )
            continue
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError) as error:
            damaged = LogError(f"{path}, line {number}: not JSON ({error}). --skip-bad-lines leaves such lines out.")
            continue
        try:
            step, data = _step_and_data(record)
        except ValueError as error:
            where = f"{path}, line {number}: {error}. --skip-bad-lines leaves such lines out."
            skipped += _skip_or_raise(LogError(where), skip_bad_lines)
            continue
        records += 1
        rows.update(step, _numbers(data, texts))
    steps = rows.steps()
    first, last = (steps[0], steps[-1]) if steps else (None, None)
    tally = LogFile(path, records, first, last, damaged is not None, skipped)
    return rows, tally


def merge_start(merged: Columns, origin: dict[int, int], fresh: Columns, start: int) -> Columns:
    """``merged`` with a later start laid over it; ``origin`` remembers which start trained a step."""
    if not len(merged):
        origin.update(dict.fromkeys(fresh.steps(), start))
        return fresh
    for step, row in fresh.rows():
        if step in merged and row and all(name.startswith(VALIDATION) for name in row):
            merged.update(step, row)
        else:
            merged.replace(step, row)
            origin[step] = start
    return merged


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers from 1; one longer than ``LONGEST_LINE`` is cut a byte after it."""
    with path.open("rb") as stream:
        for number in count(1):
            raw = stream.readline(LONGEST_LINE + 1)
            if not raw:
                return
            rest = raw
            while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = stream.readline(LONGEST_LINE + 1)
            if raw.strip():
                yield number, raw


def _skip_or_raise(error: LogError, skip_bad_lines: bool) -> int:
    if not skip_bad_lines:
        raise error
    return 1


def _step_and_data(record: object) -> tuple[int, Mapping[str, object]]:
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


def _numbers(data: Mapping[str, object], texts: Counter[str]) -> Row:
    """The numeric metrics of a record as floats; null, which is how verl's logger writes NaN, is NaN."""
    row: Row = {}
    for name, value in data.items():
        if value is None:
            row[sys.intern(name)] = math.nan
        elif isinstance(value, (int, float)):
            row[sys.intern(name)] = _to_float(value)
        else:
            texts[name] += 1
    return row


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return math.inf if value > 0 else -math.inf


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]


def _listing(paths: list[Path]) -> str:
    shown = ", ".join(str(path) for path in paths[:4])
    return shown + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def _tally_sentence(files: list[LogFile]) -> str:
    torn, skipped = sum(file.torn for file in files), sum(file.skipped for file in files)
    return f"{len(files)} files, 0 records, {torn} torn last lines, {skipped} skipped lines"


def _settings_of(place: Path) -> tuple[Mapping[str, object], list[str]]:
    config = (place.parent if place.is_file() else place) / CONFIG_FILE
    if not config.is_file():
        return {}, []
    try:
        return read_settings(config), []
    except SettingsError as error:
        return {}, [f"{error} The settings are missing from this report."]


def _file_notes(files: list[LogFile]) -> Iterator[str]:
    for file in files:
        if file.torn:
            yield f"{file.path.name}: the last line was torn, as a killed process leaves it, and is left out."
        if file.skipped:
            lines = "1 damaged line was" if file.skipped == 1 else f"{file.skipped} damaged lines were"
            yield f"{file.path.name}: {lines} skipped."
        if not file.records:
            yield f"{file.path.name}: holds no step."


def _leftover_notes(origin: Mapping[int, int], files: list[LogFile]) -> Iterator[str]:
    """Steps of a start beyond the point from which a later one took over, and not logged again since."""
    for start, file in enumerate(files):
        resumed_at = min((later.first for later in files[start + 1 :] if later.first is not None), default=None)
        if resumed_at is None:
            continue
        left = sorted(step for step, trained in origin.items() if trained == start and step > resumed_at)
        if left:
            span = f"Step {left[0]} comes" if len(left) == 1 else f"Steps {left[0]} to {left[-1]} come"
            yield f"{span} from {file.path.name}, before the run went back to step {resumed_at}, and not logged again."


def _value_notes(odd: Mapping[str, np.ndarray], texts: Mapping[str, int]) -> Iterator[str]:
    for name, steps in sorted(odd.items()):
        yield f"{name}: {len(steps)} logged value{'s are' if len(steps) > 1 else ' is'} NaN or infinite and not drawn."
    if texts:
        yield f"Not numbers, and left out: {', '.join(sorted(texts))}."
