"""The numbers a report leads with: validation before and after, and first, last and extreme values of each metric."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cppo_verl.reporting import names
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.settings import method_name

NOT_LOGGED = "not logged"
ARROW = "→"


def series(run: Run, name: str) -> pd.Series:
    """The finite values of a metric by step; empty when it was not logged."""
    if name not in run.frame:
        return pd.Series(dtype="float64", index=pd.Index([], dtype="int64", name="step"))
    column = run.frame[name]
    return column[np.isfinite(column)]


def first_logged(run: Run, candidates: tuple[str, ...]) -> str | None:
    """The first of these metrics that has a value."""
    return next((name for name in candidates if len(series(run, name))), None)


@dataclass(frozen=True)
class Validation:
    """Validation results: ``by_source`` holds one series a data source, ``mean`` their unweighted mean at the steps
    where all of them were validated. ``kind`` is ``accuracy`` or ``reward``, ``samples`` the N of mean@N by source."""

    kind: str
    by_source: dict[str, pd.Series]
    samples: dict[str, int]
    mean: pd.Series

    def describe(self) -> str:
        """What the mean is a mean of: the validation sets and how many answers a prompt."""
        sets = [f"{source} ({n} answer{'s' * (n != 1)} a prompt)" for source, n in self.samples.items()]
        if len(set(self.samples.values())) == 1:
            sets = [*list(self.by_source)[:-1], sets[-1]]
            sets[-1] = sets[-1].replace(")", " each)") if len(sets) > 1 else sets[-1]
        return f"Validated on {sets[0]}" if len(sets) == 1 else f"Unweighted mean of {', '.join(sets)}"


def validation(run: Run) -> Validation | None:
    """Validation accuracy, or reward where no accuracy was logged; a source's largest N is taken. None without any."""
    for kind, variable in (("accuracy", "acc"), ("reward", "reward")):
        samples: dict[str, int] = {}
        for name in run.frame.columns:
            match = re.fullmatch(rf"val-core/(.+)/{variable}/mean@([0-9]+)", str(name))
            if match and len(series(run, str(name))):
                samples[match[1]] = max(samples.get(match[1], 0), int(match[2]))
        if samples:
            by_source = {s: series(run, validation_metric(s, variable, n)) for s, n in samples.items()}
            return Validation(kind, by_source, samples, pd.DataFrame(by_source).dropna().mean(axis=1))
    return None


def validation_metric(source: str, variable: str, samples: int) -> str:
    """verl's name for the mean of ``variable`` (``acc`` or ``reward``) over ``samples`` answers a prompt."""
    return f"val-core/{source}/{variable}/mean@{samples}"


@dataclass(frozen=True)
class Headline:
    """The result in words.

    Attributes:
        what: method and metric. figures: before and after, or the only value, or none.
        span: the steps between. detail: what the number is a mean of, and the best value on the way.
    """

    what: str
    figures: tuple[str, ...]
    span: str
    detail: str

    def sentence(self) -> str:
        """All but the detail in one line."""
        return " ".join(part for part in (self.what, f" {ARROW} ".join(self.figures), self.span) if part)


def headline(run: Run) -> Headline:
    """Validation before and after; else the training reward's; else that neither was logged."""
    method = method_name(run.settings)
    prefix = f"{method}: " if method else ""
    found = validation(run)
    if found is not None and len(found.mean):
        unit = percent if found.kind == "accuracy" else plain
        return _change(f"{prefix}validation {found.kind}", found.mean, unit, found.describe(), last_step(run))
    absent = "no validation was logged" if found is None else f"no step validated all of {', '.join(found.by_source)}"
    reward = first_logged(run, names.REWARD)
    if reward is not None:
        return _change(
            f"{prefix}training reward", series(run, reward), plain, f"Metric {reward}; {absent}", last_step(run)
        )
    what = f"{prefix}{absent}, nor a training reward"
    return Headline(_capital(what), (), "", f"The log ends at step {last_step(run)}.")


def _change(what: str, values: pd.Series, unit: Callable[[float], str], source: str, end: int) -> Headline:
    first, last, best = int(values.index[0]), int(values.index[-1]), int(values.idxmax())
    goes_on = f" The log goes on to step {end}." if end > last else ""
    if len(values) == 1:
        detail = f"{_capital(source)}. The only value logged.{goes_on}"
        return Headline(_capital(what), (unit(values.loc[first]),), f"at step {first}", detail)
    span = f"after {last} steps" if first == 0 else f"from step {first} to step {last}"
    detail = f"{_capital(source)}. Best {unit(values.loc[best])} at step {best}.{goes_on}"
    return Headline(_capital(what), (unit(values.loc[first]), unit(values.loc[last])), span, detail)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def last_step(run: Run) -> int:
    return int(run.frame.index[-1])


def percent(x: float) -> str:
    """0.4823 as 48.2%; below one percent with two significant digits, so that a small share does not read as none."""
    return short_exponent(f"{100 * x:#.2g}%") if 0 < abs(x) < 0.01 else f"{100 * x:.1f}%"


def plain(x: float) -> str:
    """Three significant digits: 0.482, 12.0, 1.20e-9; whole numbers from 1000 on."""
    if x == 0 or 1000 <= abs(x) < 1e6:
        return f"{x:.0f}"
    return short_exponent(f"{x:#.3g}".removesuffix("."))


def short_exponent(text: str) -> str:
    """``1e-05`` as ``1e-5``."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].replace("+", ""), text)


def seconds(x: float) -> str:
    return f"{plain(x)} s"


@dataclass(frozen=True)
class NumberRow:
    """One line of the table of numbers.

    Attributes:
        panel: key of the panel that shows the metric, or empty. label: the metric in words. metric: its logged name.
        cells: first, last, lowest and highest value; empty for what was not logged.
    """

    panel: str
    label: str
    metric: str
    cells: tuple[str, ...]


def number_rows(run: Run) -> list[NumberRow]:
    """First, last, lowest and highest value of everything the panels show."""
    reward = first_logged(run, names.REWARD) or names.REWARD[0]
    rows = _validation_rows(run)
    rows.append(_row("learning", "training reward", reward, series(run, reward), plain))
    for panel, label, name, unit in _NUMBERS:
        rows.append(_row(panel, label, name, series(run, name), unit))
    for panel, label, name, unit in _NUMBERS_OF_SOME:
        if len(values := series(run, name)):
            rows.append(_row(panel, label, name, values, unit))
    return rows


Unit = Callable[[float], str]

_NUMBERS: tuple[tuple[str, str, str, Unit], ...] = (
    ("masked", "masked tokens, all", names.MASKED, percent),
    ("masked", "masked by the token threshold", names.MASKED_BY_TOKEN, percent),
    ("masked", "masked by the prefix budget", names.MASKED_BY_BUDGET, percent),
    ("masked", "masked, advantage above 0", names.MASKED_POSITIVE, percent),
    ("masked", "masked, advantage below 0", names.MASKED_NEGATIVE, percent),
    ("positions", "divergence, first eighth of a response", names.BY_POSITION[0], plain),
    ("positions", "divergence, last eighth of a response", names.BY_POSITION[-1], plain),
    ("budget", "effective delta_b", names.EFFECTIVE_BUDGET, plain),
    ("budget", "prefix average S/W", names.PREFIX_AVERAGE, plain),
    ("divergence", "divergence, mean", names.DIVERGENCE_MEAN, plain),
    ("divergence", "divergence, 99th percentile", names.DIVERGENCE_P99, plain),
    ("divergence", "divergence, largest", names.DIVERGENCE_MAX, plain),
    ("divergence", "first-update gap", names.FIRST_UPDATE, plain),
    ("time", "time a step", names.TIME_STEP, seconds),
    ("time", "of it, generation", names.TIME_GEN, seconds),
    ("time", "of it, actor update", names.TIME_UPDATE, seconds),
    ("", "response length, tokens", "response_length/mean", plain),
    ("", "gradient norm", "actor/grad_norm", plain),
)
_NUMBERS_OF_SOME: tuple[tuple[str, str, str, Unit], ...] = (  # asynchronous runs, and those with a budget_target
    ("versions", "versions behind, mean", names.BEHIND_MEAN, plain),
    ("versions", "versions behind, oldest", names.BEHIND_MAX, plain),
    ("versions", "responses sampled with several versions", names.SPANNING, percent),
    ("versions", "effective sample, tokens", names.SAMPLE_SIZE_TOKENS, percent),
    ("versions", "effective sample, responses", names.SAMPLE_SIZE_RESPONSES, percent),
    ("staleness", "divergence before any update, newest weights", names.FIRST_BY_STALENESS[0], plain),
    ("staleness", "the same, one version behind", names.FIRST_BY_STALENESS[1], plain),
    ("staleness", "the same, five or more behind", names.FIRST_BY_STALENESS[-1], plain),
    ("scale", "scale of the thresholds", names.SCALE, plain),
)


def _validation_rows(run: Run) -> list[NumberRow]:
    found = validation(run)
    if found is None:
        return [NumberRow("learning", "validation accuracy", "val-core/*/acc/mean@*", ())]
    unit, variable = (percent, "acc") if found.kind == "accuracy" else (plain, "reward")
    return [
        _row("learning", f"validation {found.kind}, {source}", validation_metric(source, variable, n), values, unit)
        for (source, values), n in zip(found.by_source.items(), found.samples.values(), strict=True)
    ]


def _row(panel: str, label: str, metric: str, values: pd.Series, unit: Unit) -> NumberRow:
    if values.empty:
        return NumberRow(panel, label, metric, ())
    picked = (values.iloc[0], values.iloc[-1], values.min(), values.max())
    return NumberRow(panel, label, metric, tuple(unit(float(x)) for x in picked))
