"""Reads verl's file logger: one JSON object a line, ``{"step": int, "data": {metric: number}}``, one file a start.

A resumed run adds a file, and verl validates before it trains on: the first record of a resumed start repeats the step
of the checkpoint with validation metrics alone. So a later start replaces an earlier one's step, except where all it
logged there is validation, which it adds to the step. Lines are read one at a time; only the numbers stay in memory.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cppo_verl.reporting.names import VALIDATION
from cppo_verl.reporting.settings import CONFIG_FILE, SettingsError, read_settings

Row = dict[str, float]

LARGEST_STEP = 2**53  # beyond it a step would not be exact as a JSON number


class LogError(ValueError):
    """A log is missing, empty or damaged; the message names the file, what was found and the remedy."""


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
    """

    name: str
    settings: Mapping[str, object]
    frame: pd.DataFrame
    files: tuple[LogFile, ...]
    notes: tuple[str, ...]


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
    rows: dict[int, Row] = {}
    origin: dict[int, int] = {}
    files: list[LogFile] = []
    texts: Counter[str] = Counter()
    for start, path in enumerate(paths):
        fresh, tally = read_file(path, skip_bad_lines, texts)
        files.append(tally)
        merge_start(rows, origin, fresh, start)
    if not rows:
        raise LogError(f"no steps in {_listing(paths)}: {_tally_sentence(files)}. Is the run past its first step?")
    settings, settings_notes = _settings_of(place)
    notes = (*settings_notes, *_file_notes(files), *_leftover_notes(rows, origin, files), *_value_notes(rows, texts))
    return Run(place.stem if place.is_file() else place.name, settings, _frame(rows), tuple(files), notes)


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
        raise LogError(
            f"no log in {place}: looked for logs/*.jsonl and *.jsonl, found {shown or 'an empty directory'}. "
            "Was the run started with 'file' in trainer.logger?"
        )
    return direct


def read_file(path: Path, skip_bad_lines: bool, texts: Counter[str]) -> tuple[dict[int, Row], LogFile]:
    """Rows by step of one start, later records of a step over earlier ones; counts values that are text in ``texts``.

    Raises:
        LogError: a damaged line before the end of the file; names file and line.
    """
    rows: dict[int, Row] = {}
    records = skipped = 0
    damaged: LogError | None = None  # judged once it is known whether a line follows
    for number, raw in _lines(path):
        if damaged is not None:
            skipped += _skip_or_raise(damaged, skip_bad_lines)
            damaged = None
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
        rows.setdefault(step, {}).update(_numbers(data, texts))
    tally = LogFile(path, records, min(rows, default=None), max(rows, default=None), damaged is not None, skipped)
    return rows, tally


def merge_start(rows: dict[int, Row], origin: dict[int, int], fresh: Mapping[int, Row], start: int) -> None:
    """Lay the rows of a later start over ``rows``; ``origin`` remembers which start trained a step."""
    for step, row in fresh.items():
        if step in rows and row and all(name.startswith(VALIDATION) for name in row):
            rows[step].update(row)
        else:
            rows[step], origin[step] = dict(row), start


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers from 1."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
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


def _frame(rows: Mapping[int, Row]) -> pd.DataFrame:
    steps = sorted(rows)
    columns = sorted({name for row in rows.values() for name in row})
    values = {name: [rows[step].get(name, math.nan) for step in steps] for name in columns}
    return pd.DataFrame(values, index=pd.Index(steps, name="step"), dtype="float64")


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


def _leftover_notes(rows: Mapping[int, Row], origin: Mapping[int, int], files: list[LogFile]) -> Iterator[str]:
    """Steps of a start beyond the point from which a later one took over, and not logged again since."""
    for start, file in enumerate(files):
        resumed_at = min((later.first for later in files[start + 1 :] if later.first is not None), default=None)
        left = [step for step in sorted(rows) if origin[step] == start and resumed_at is not None and step > resumed_at]
        if left:
            span = f"Step {left[0]} comes" if len(left) == 1 else f"Steps {left[0]} to {left[-1]} come"
            yield f"{span} from {file.path.name}, before the run went back to step {resumed_at}, and not logged again."


def _value_notes(rows: Mapping[int, Row], texts: Mapping[str, int]) -> Iterator[str]:
    odd = Counter(name for row in rows.values() for name, value in row.items() if not math.isfinite(value))
    for name, count in sorted(odd.items()):
        yield f"{name}: {count} logged value{'s are' if count > 1 else ' is'} NaN or infinite and not drawn."
    if texts:
        yield f"Not numbers, and left out: {', '.join(sorted(texts))}."
