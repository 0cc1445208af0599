"""The one table of a selftest: a row is something predicted, measured, limited and judged; a stage leaves many."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cppo_verl import atomic

HOLDS, FAILS, NOT_RUN, NOTED = "holds", "fails", "not run here", "noted"

Value = float | int | str | None


@dataclass(frozen=True)
class Row:
    """One line: what was measured, and a verdict, HOLDS, FAILS or NOTED (shown, not judged).

    Numbers are in ``unit``; ``predicted`` and ``limit`` are None where there is none. ``note`` is a reader's why.
    """

    what: str
    verdict: str
    measured: Value
    predicted: Value = None
    limit: Value = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What a stage left.

    Attributes:
        stage: its name. verdict: HOLDS, FAILS or NOT_RUN. rows: in the order they were measured.
        seconds: how long it took. reason: why it was not run, or what ended it; empty otherwise.
        key: what the result depends on; with another key it is not used again.
    """

    stage: str
    verdict: str
    rows: Sequence[Row] = ()
    seconds: float = 0.0
    reason: str = ""
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """Inverse of ``to_json``; raises TypeError or KeyError for anything else."""
        return cls(**{**content, "rows": [Row(**row) for row in content["rows"]]})


def judged(stage: str, rows: Sequence[Row], seconds: float = 0.0, reason: str = "", key: str = "") -> Result:
    """The result of a stage that ran: it fails with a reason, with a failed row, and without any row."""
    failed = bool(reason) or not rows or any(row.verdict == FAILS for row in rows)
    return Result(stage, FAILS if failed else HOLDS, rows, seconds, reason or ("" if rows else "no row"), key)


@dataclass
class Table:
    """The rows of a stage as they come. ``path`` has each before the next is measured, and is always whole."""

    stage: str
    path: Path
    rows: list[Row] = field(default_factory=list)
    reason: str = "the stage did not come to its end"

    def at_most(
        self, what: str, measured: float, limit: float, predicted: Value = None, unit: str = "", note: str = ""
    ):
        """A number that must not be above ``limit``; NaN is."""
        verdict = HOLDS if measured <= limit else FAILS
        self._add(Row(what, verdict, _plain(measured), predicted, limit, unit, note))

    def equal(self, what: str, measured: Value, expected: Value, unit: str = "", note: str = "") -> None:
        """Something that must be just what was predicted."""
        verdict = HOLDS if measured == expected else FAILS
        self._add(Row(what, verdict, _plain(measured), expected, None, unit, note))

    def noted(self, what: str, measured: Value, predicted: Value = None, unit: str = "", note: str = "") -> None:
        """A number to look at, without a limit."""
        self._add(Row(what, NOTED, _plain(measured), predicted, None, unit, note))

    def failed(self) -> list[str]:
        """What failed so far."""
        return [row.what for row in self.rows if row.verdict == FAILS]

    def save(self) -> None:
        atomic.write(self.path, json.dumps(judged(self.stage, self.rows, reason=self.reason).to_json()))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)
        self.save()


def show(value: Value, unit: str = "") -> str:
    """A value for a reader: three significant digits, thousands apart, yes or no, its unit behind it."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if 1e-3 <= abs(value) < 1000 else f"{value:.2e}"
    return f"{text} {unit}".rstrip()


def _plain(value: Value) -> Value:
    """Numbers that JSON cannot hold as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
