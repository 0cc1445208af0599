"""Metrics by step as float64 columns: eight bytes a value, so that the log of a long run fits in memory."""

import struct
from array import array
from collections.abc import Iterator, Mapping
from itertools import repeat

import numpy as np
import pandas as pd

Row = dict[str, float]

# A NaN that no log can hold: JSON has a single NaN, this one carries a mark in its payload. So "not logged" and
# "logged NaN" need no second array.
_MISSING_BITS = 0x7FF8_0000_0000_0CA7
MISSING: float = struct.unpack("<d", struct.pack("<Q", _MISSING_BITS))[0]


class Columns:
    """Rows by step in the order of their first record; a metric that a step did not log holds ``MISSING`` there."""

    def __init__(self) -> None:
        self._row_of: dict[int, int] = {}
        self._columns: dict[str, array[float]] = {}

    def __contains__(self, step: int) -> bool:
        return step in self._row_of

    def __len__(self) -> int:
        return len(self._row_of)

    def steps(self) -> list[int]:
        """Steps in ascending order."""
        return sorted(self._row_of)

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Lay ``row`` over what ``step`` holds."""
        at = self._row_of.setdefault(step, len(self._row_of))
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = array("d")
            if len(column) <= at:
                column.extend(repeat(MISSING, at + 1 - len(column)))
            column[at] = value

    def replace(self, step: int, row: Mapping[str, float]) -> None:
        """Forget what ``step`` holds and put ``row`` there."""
        at = self._row_of.get(step)
        if at is not None:
            for column in self._columns.values():
                if len(column) > at:
                    column[at] = MISSING
        self.update(step, row)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """(step, what it logged), in the order of the first records."""
        missing = {name: _is_missing(_view(column)) for name, column in self._columns.items()}
        for step, at in self._row_of.items():
            logged = ((name, column) for name, column in self._columns.items() if len(column) > at)
            yield step, {name: column[at] for name, column in logged if not missing[name][at]}

    def nonfinite(self) -> dict[str, np.ndarray]:
        """Metric -> ascending steps at which it was logged as NaN or infinite; metrics without any are left out."""
        steps = np.fromiter(self._row_of, dtype=np.int64, count=len(self))
        found = {}
        for name, column in self._columns.items():
            values = _view(column)
            odd = ~np.isfinite(values)
            odd[odd] = ~_is_missing(values[odd])
            if odd.any():
                found[name] = np.sort(steps[: len(values)][odd])
        return found

    def take_frame(self) -> pd.DataFrame:
        """One row a step, ascending, one column a metric, by name; empties the columns on the way."""
        steps = np.fromiter(self._row_of, dtype=np.int64, count=len(self))
        order = np.argsort(steps)
        names = sorted(self._columns)
        values = np.empty((len(names), len(steps)))  # a page of it exists only once it is written
        for target, name in zip(values, names, strict=True):
            column = self._columns.pop(name)
            column.extend(repeat(MISSING, len(steps) - len(column)))
            target[:] = _view(column)[order]
        self._row_of.clear()
        return pd.DataFrame(values.T, index=pd.Index(steps[order], name="step"), columns=names, copy=False)


def _view(column: "array[float]") -> np.ndarray:
    return np.frombuffer(column, dtype=np.float64)


def _is_missing(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint64) == _MISSING_BITS
