"""The one table of a selftest: a row is something predicted, measured, limited and judged; a stage leaves many."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

HOLDS, FAILS, NOT_RUN, NOTED = "holds", "fails", "not run here", "noted"

Value = float | int | str | None


@dataclass(frozen=True)
class Row:
    """One line. Numbers are in ``unit``; ``predicted`` and ``limit`` are None where there is none.

    Attributes:
        what: what was measured. verdict: one of HOLDS, FAILS, NOTED (shown, not judged). note: a reader's why.
    """

    what: str
    verdict: str
    measured: Value
    predicted: Value = None
    limit: Value = None
    unit: str = ""
    note: str = ""


def at_most(what: str, measured: float, limit: float, predicted: Value = None, unit: str = "", note: str = "") -> Row:
    """A number that must not be above ``limit``; NaN is."""
    verdict = HOLDS if measured <= limit else FAILS
    return Row(what, verdict, measured, predicted, limit, unit, note)


def equal(what: str, measured: Value, expected: Value, unit: str = "", note: str = "") -> Row:
    """Something that must be just what was predicted."""
    return Row(what, HOLDS if measured == expected else FAILS, measured, expected, None, unit, note)


def noted(what: str, measured: Value, predicted: Value = None, unit: str = "", note: str = "") -> Row:
    """A number to look at, without a limit."""
    return Row(what, NOTED, measured, predicted, None, unit, note)


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
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that JSON cannot hold become text."""
        content = asdict(self)
        content["rows"] = [{name: _plain(value) for name, value in row.items()} for row in content["rows"]]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """Inverse of ``to_json``.

        Raises:
            TypeError, KeyError: it is none.
        """
        return cls(**{**content, "rows": tuple(Row(**row) for row in content["rows"])})


def judged(stage: str, rows: Iterable[Row], seconds: float = 0.0, reason: str = "", key: str = "") -> Result:
    """The result of a stage that ran: it fails with a reason, with a failed row, and without any row."""
    rows = tuple(rows)
    failed = bool(reason) or not rows or any(row.verdict == FAILS for row in rows)
    return Result(stage, FAILS if failed else HOLDS, rows, seconds, reason or ("" if rows else "no row"), key)


def show(value: Value, unit: str = "") -> str:
    """A value for a reader: three significant digits, thousands apart, yes or no, its unit behind it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = _number(value)
    return f"{text} {unit}" if unit else text


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.2e}" if not 1e-3 <= abs(value) < 1e6 else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _plain(value: Value) -> Value:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
