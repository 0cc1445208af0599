"""What runs side by side (``outcomes``) say: sentences, CSV, and the rows of the tables in page and Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pandas as pd

from cppo_verl.reporting.intervals import interval
from cppo_verl.reporting.outcomes import MEASURES, Comparison
from cppo_verl.reporting.scores import ACCURACY
from cppo_verl.reporting.text import ABSENT, csv_text, duration, minus, plain, seconds

NO_INTERVAL = "one seed: no interval"
NO_PAIR = "no seed in common"
INTERVALS = "Intervals are Student's t, 95%, over the seeds; each stands alone, none is corrected for their number."
COUNTING = (
    "Best and final are over the validated steps after 0. The best of many noisy validations is above what the model "
    "would score again, the more so the more there are; the final is not."
)


@dataclass(frozen=True)
class Shown:
    """A mean with its interval as text: of scores (``signed`` False), or of differences."""

    values: Sequence[float]
    kind: str
    signed: bool = False

    def text(self, value: float) -> str:
        """One decimal of a percentage, three digits of a reward."""
        text = minus(f"{round(value, 1) + 0.0:.1f}" if self.kind == ACCURACY else plain(value))
        return f"+{text}" if self.signed and not text.startswith("−") else text

    @property
    def mean(self) -> str:
        return self.text(interval(self.values)[0])

    @property
    def ends(self) -> tuple[str, str] | None:
        """The interval's; None where there is none."""
        _, low, high = interval(self.values)
        return (self.text(low), self.text(high)) if isfinite(low) else None

    @property
    def verdict(self) -> str:
        """Of a difference: ``higher``, ``lower``, ``undecided``, or why there is no interval."""
        _, low, high = interval(self.values)
        if self.ends is None:
            return "one pair: no interval" if self.values else NO_PAIR
        return "higher" if low > 0 else "lower" if high < 0 else "undecided"

    def __str__(self) -> str:
        if not self.values:
            return NO_PAIR if self.signed else "no score"
        span = f" [{', '.join(self.ends)}]" if self.ends else "" if self.signed else f" ({NO_INTERVAL})"
        return f"{self.mean}{span}" + (f", {self.verdict}" if self.signed else "")


def score(c: Comparison, method: str, measure: str) -> Shown:
    return Shown(c.values(method, measure), c.kind)


def difference(c: Comparison, method: str, measure: str) -> Shown:
    return Shown(list(c.differences[method, measure].values()), c.kind, signed=True)


def kind_name(c: Comparison) -> str:
    return f"validation {c.kind}" if c.kind == ACCURACY else c.kind


def sentence(c: Comparison) -> str:
    """The result in words: the final scores, and what the pairs say."""
    finals = [f"{name} {score(c, name, 'final')}" for name in c.methods if c.values(name, "final")]
    if not finals:
        return f"{c.model}: no run has a score."
    pairs = [(name, difference(c, name, "final")) for name in c.others]
    said = [f"{name} less {c.baseline}: {found}." for name, found in pairs if found.values]
    return " ".join([f"{c.model}, {kind_name(c)} at the end: {'; '.join(finals)}.", *said])


def method_rows(c: Comparison) -> list[dict[str, Any]]:
    """A row a method: name, runs, seeds, scores with the steps they are from, masked share, time."""
    means = {(name, m): interval(c.values(name, m))[0] for name in c.methods for m in MEASURES if c.values(name, m)}
    rows = []
    for name in c.methods:
        runs, cells = c.by_method[name], []
        for measure in MEASURES:
            steps = sorted(runs[f"{measure}_step"].dropna().astype(int))
            others = [mean for (_, m), mean in means.items() if m == measure]
            top = len(others) > 1 and means.get((name, measure)) == max(others)
            at = "" if not steps else f"step {steps[0]}" if len({*steps}) == 1 else f"steps {steps[0]}–{steps[-1]}"
            cells.append({"score": score(c, name, measure), "at": at, "top": top})
        row = {"name": name, "runs": len(runs), "seeds": runs["key"].nunique(), "cells": cells}
        row["collapsed"] = int(runs["collapsed"].sum())
        for part, text in (("masked", "{:.2f}%".format), ("seconds", seconds), ("hours", duration)):
            found = c.values(name, part)
            row[part] = text(interval(found)[0]) if found else ABSENT
        rows.append(row)
    return rows


def difference_rows(c: Comparison) -> tuple[list[dict[str, Any]], float]:
    """A row a method that is not the baseline, and the reach of its drawing: the largest value drawn."""
    finals = {name: difference(c, name, "final") for name in c.others}
    # the ends of the wide interval of two pairs may lie outside of what is drawn
    drawn = [x for d in finals.values() for x in (*d.values, *interval(d.values)[1:][: 2 * (len(d.values) > 2)])]
    reach = max(map(abs, drawn), default=0.0) or 1.0
    rows = []
    for name, found in finals.items():
        spots = [_spot(x, reach) for x in found.values]
        mean, *ends = (_spot(x, reach) if isfinite(x) else None for x in interval(found.values))
        cells = [difference(c, name, "best"), found]
        words = f"{name} less {c.baseline}: {found}"
        rows.append({"name": name, "cells": cells, "spots": spots, "mean": mean, "ends": ends, "words": words})
    return rows, reach


def seed_rows(c: Comparison) -> tuple[list[str], list[tuple[str, list[pd.DataFrame]]]]:
    """Heads and, a row a method, the runs of each seed; those without one last. No rows where there is one a method."""
    if len(c.seeds) < 2 and not c.runs["method"].duplicated().any():
        return [], []
    keys = [*c.seeds, *[""] * bool((c.runs["seed"] == "").any())]
    heads = [f"seed {seed or 'unknown'}" for seed in keys]
    return heads, [(name, [runs[runs["seed"] == seed] for seed in keys]) for name, runs in c.by_method.items()]


def _spot(value: float, reach: float) -> float:
    """Where it lies on a line of 120 units around 0."""
    return round(60 + 56 * max(-1.0, min(1.0, value / reach)), 1)


def comparison_csv(comparisons: Sequence[Comparison]) -> str:
    """A row a model and method: seeds, best and final with their intervals, masked share, time."""
    heads = ["model", "method", "measure", "runs", "seeds", "collapsed"]
    heads += [f"{name}_{part}" for name in MEASURES for part in ("mean", "low", "high", "n")]
    heads += ["masked_percent", "seconds_a_step", "hours_a_run"]
    rows = []
    for c in comparisons:
        for row in method_rows(c):
            scores = [x for measure in MEASURES for x in _four(c.values(row["name"], measure))]
            more = [_six(interval(c.values(row["name"], part))[0]) for part in ("masked", "seconds", "hours")]
            counts = [row["runs"], row["seeds"], row["collapsed"]]
            rows.append([c.model, row["name"], c.kind, *counts, *scores, *more])
    return csv_text(heads, rows)


def differences_csv(comparisons: Sequence[Comparison]) -> str:
    """A row a model, method and measure: mean paired difference to the baseline, interval, pairs, each seed's own."""
    heads = ["model", "method", "baseline", "measure", "mean", "low", "high", "n", "by_seed"]
    rows = []
    for c in comparisons:
        for (method, measure), found in c.differences.items():
            each = " ".join(f"{seed}:{value:+.6g}" for seed, value in found.items())
            rows.append([c.model, method, c.baseline, measure, *_four(list(found.values())), each])
    return csv_text(heads, rows)


def _four(values: Sequence[float]) -> list[str]:
    """mean, low, high, n; empty where there is none."""
    return [*(_six(x) for x in interval(values)), str(len(values))]


def _six(value: float) -> str:
    return f"{value:.6g}" if isfinite(value) else ""
