"""Metrics by step as float64 columns: eight bytes a value, so that the log of a long run fits in memory."""

from array import array
from collections import defaultdict
from collections.abc import Mapping
from itertools import repeat
from math import isfinite, nan

import numpy as np
import pandas as pd


class Columns:
    """Rows by step; NaN where a step did not log a metric. ``odd`` has the steps that logged it as NaN or infinite."""

    def __init__(self) -> None:
        self._row_of: dict[int, int] = {}
        self._columns: dict[str, array[float]] = {}
        self.odd: defaultdict[str, set[int]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._row_of)

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Lay ``row`` over what ``step`` holds."""
        at = self._row_of.setdefault(step, len(self._row_of))
        for name, value in row.items():
            column = self._columns.setdefault(name, array("d"))
            if len(column) <= at:
                column.extend(repeat(nan, at + 1 - len(column)))
            column[at] = value
            (self.odd[name].discard if isfinite(value) else self.odd[name].add)(step)

    def forget(self, step: int) -> None:
        """Take out what ``step`` holds; the step stays."""
        at = self._row_of[step]
        for name, column in self._columns.items():
            if len(column) > at:
                column[at] = nan
            self.odd[name].discard(step)

    def take_frame(self) -> pd.DataFrame:
        """One row a step, ascending, one column a metric, by name; empties the columns on the way."""
        steps = np.fromiter(self._row_of, dtype=np.int64, count=len(self))
        order = np.argsort(steps)
        names = sorted(self._columns)
        values = np.empty((len(names), len(steps)))  # a page of it exists only once it is written
        for target, name in zip(values, names, strict=True):
            column = self._columns.pop(name)
            column.extend(repeat(nan, len(steps) - len(column)))
            target[:] = np.frombuffer(column)[order]
        return pd.DataFrame(values.T, index=pd.Index(steps[order], name="step"), columns=names, copy=False)
