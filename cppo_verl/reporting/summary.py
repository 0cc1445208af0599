"""The numbers a report leads with: validation before and after, and first, last and extreme values of each metric."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.metrics import ALL, REWARD, series
from cppo_verl.reporting.settings import headline_name
from cppo_verl.reporting.text import capital, count, number


@dataclass(frozen=True)
class Validation:
    """Validation results: ``by_source`` holds one series a data source, ``mean`` their unweighted mean at the steps
    where all of them were validated. ``kind`` is ``accuracy`` or ``reward``, ``samples`` the N of mean@N by source."""

    kind: str
    by_source: dict[str, pd.Series]
    samples: dict[str, int]

    @property
    def mean(self) -> pd.Series:
        return pd.DataFrame(self.by_source).dropna().mean(axis=1)

    @property
    def unit(self) -> str:
        return "%" if self.kind == "accuracy" else ""

    def describe(self) -> str:
        """What the mean is a mean of: the validation sets and how many answers a prompt."""
        sets = [f"{source} ({count(n, 'answer')} a prompt)" for source, n in self.samples.items()]
        if len(sets) > 1 and len(set(self.samples.values())) == 1:
            sets = [*list(self.by_source)[:-1], sets[-1].replace(")", " each)")]
        return f"Validated on {sets[0]}" if len(sets) == 1 else f"Unweighted mean of {', '.join(sets)}"


def validation(frame: pd.DataFrame) -> Validation | None:
    """Validation accuracy, or reward where no accuracy was logged; a source's largest N is taken. None without any."""
    for kind, variable in (("accuracy", "acc"), ("reward", "reward")):
        samples: dict[str, int] = {}
        for name in map(str, frame.columns):
            match = re.fullmatch(rf"val-core/(.+)/{variable}/mean@([0-9]+)", name, re.DOTALL)
            if match and len(series(frame, name)):
                samples[match[1]] = max(samples.get(match[1], 0), int(match[2]))
        if samples:
            by_source = {s: series(frame, f"val-core/{s}/{variable}/mean@{n}") for s, n in samples.items()}
            return Validation(kind, by_source, samples)
    return None


@dataclass(frozen=True)
class Headline:
    """The result in words: method and metric, its values before and after (or the only one, or none), the steps
    between, and what the number is a mean of, with the best value on the way."""

    what: str
    figures: tuple[str, ...]
    span: str
    detail: str

    def sentence(self) -> str:
        return " ".join(part for part in (self.what, " → ".join(self.figures), self.span) if part)


def headline(run: Run) -> Headline:
    """Validation before and after; else the training reward's; else that neither was logged."""
    method, end = headline_name(run.settings), int(run.frame.index[-1])
    prefix = f"{method}: " if method else ""
    found = validation(run.frame)
    if found is not None and len(found.mean):
        return _change(f"{prefix}validation {found.kind}", found.mean, found.unit, found.describe(), end)
    absent = "no validation was logged" if found is None else f"no step validated all of {', '.join(found.by_source)}"
    if reward := REWARD.logged(run.frame):
        values = series(run.frame, reward)
        return _change(f"{prefix}training reward", values, "", f"Metric {reward}; {absent}", end)
    return Headline(capital(f"{prefix}{absent}, nor a training reward"), (), "", f"The log ends at step {end}.")


def _change(what: str, values: pd.Series, unit: str, source: str, end: int) -> Headline:
    first, last, best = int(values.index[0]), int(values.index[-1]), int(values.idxmax())
    figures = [number(float(values.loc[step]), unit) for step in dict.fromkeys((first, last))]
    if len(values) == 1:
        span, more = f"at step {first}", "The only value logged."
    else:
        span = f"after {last} steps" if first == 0 else f"from step {first} to step {last}"
        more = f"Best {number(float(values.loc[best]), unit)} at step {best}."
    goes_on = f" The log goes on to step {end}." if end > last else ""
    return Headline(capital(what), tuple(figures), span, f"{capital(source)}. {more}{goes_on}")


class NumberRow(NamedTuple):
    """A line of the table of numbers: the ``panel`` that shows it (or empty), the metric in words and as logged, and
    first, last, lowest and highest value, empty for what was not logged."""

    panel: str
    label: str
    metric: str
    cells: tuple[str, ...] = ()


def number_rows(run: Run) -> list[NumberRow]:
    """First, last, lowest and highest value of everything the panels show."""
    found = validation(run.frame)
    rows = [NumberRow("learning", "validation accuracy", "val-core/*/acc/mean@*")] if found is None else []
    if found is not None:
        for source, values in found.by_source.items():
            rows.append(NumberRow("learning", f"validation {found.kind}, {source}", source, _cells(values, found.unit)))
    for metric in ALL.values():
        name = metric.logged(run.frame)
        if (metric.panel or metric.numbers) and (name or metric.always):
            cells = _cells(series(run.frame, name), metric.unit)
            rows.append(NumberRow(metric.panel, metric.label, name or metric.names[0], cells))
    return rows


def _cells(values: pd.Series, unit: str) -> tuple[str, ...]:
    four = (values.iloc[0], values.iloc[-1], values.min(), values.max()) if len(values) else ()
    return tuple(number(float(x), unit) for x in four)
