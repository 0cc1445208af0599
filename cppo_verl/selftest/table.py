"""The one table of a selftest: a row is something predicted, measured, limited and judged; a stage leaves many."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cppo_verl.reporting.text import plain

HOLDS, FAILS, NOT_RUN, NOTED = "holds", "fails", "not run here", "noted"

Value = float | int | str | None


@dataclass(frozen=True)
class Row:
    """One line: HOLDS, FAILS or NOTED (shown, not judged). Numbers are in ``unit``; ``note`` is a reader's why."""

    what: str
    verdict: str
    measured: Value
    predicted: Value = None
    limit: Value = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What a stage left: HOLDS, FAILS or NOT_RUN, its rows, seconds, and why it was not run or what ended it."""

    stage: str
    verdict: str
    rows: Sequence[Row] = ()
    seconds: float = 0.0
    reason: str = ""


class Table:
    """A stage's rows. ``path`` gets each at once, a line of JSON, so that a stage that dies leaves what it measured."""

    def __init__(self, path: Path):
        self.path, self.rows = path, list[Row]()

    def at_most(self, what: str, measured: float, limit: float, predicted: Value = None, **more: str) -> None:
        """A number, of which more is in ``unit`` and ``note``, that must not be above ``limit``; NaN is."""
        self._add(Row(what, HOLDS if measured <= limit else FAILS, measured, predicted, limit, **more))

    def equal(self, what: str, measured: Value, expected: Value, note: str = "") -> None:
        """Something that must be just what was predicted."""
        self._add(Row(what, HOLDS if measured == expected else FAILS, measured, expected, note=note))

    def noted(self, what: str, measured: Value, note: str) -> None:
        """Something to look at."""
        self._add(Row(what, NOTED, measured, note=note))

    def broke(self, what: str, error: BaseException) -> None:
        """A test that raised; the same error, of what several tests stand on, is one row."""
        note = f"{type(error).__name__}: {error}".splitlines()[0]
        if note not in [row.note for row in self.rows]:
            self._add(Row(what, FAILS, "an error", note=note))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)
        # JSON has no NaN and no infinity
        values = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def show(value: Value, unit: str = "") -> str:
    """A value for a reader: three significant digits, whole numbers in full, yes or no, its unit behind it."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{f'{value:,}' if isinstance(value, int) else plain(value)} {unit}".rstrip()
