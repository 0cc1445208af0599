"""Runs of one model side by side, whatever the model: methods, seeds, and differences between runs of the same seed.

Every run counts with what it scored, collapsed ones too: to leave them out would favour the method that collapses. Runs
of one method and seed count as one, with their mean: run again, a seed says nothing new of other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import isfinite, nan
from typing import Any

import pandas as pd

from cppo_verl import paper
from cppo_verl.estimates import interval
from cppo_verl.reporting.metrics import MASKED_OR_CLIPPED, STEP_TIME
from cppo_verl.reporting.scores import ACCURACY, Entry, kind_of
from cppo_verl.reporting.settings import ASYNC_LABELS, OWN, own_knobs, unused_knobs
from cppo_verl.reporting.text import ABSENT, csv_text, duration, minus, plain, seconds, short

MEASURES = ("best", "final")
NO_INTERVAL, NO_PAIR = "one seed: no interval", "no seed in common"
INTERVALS = "Intervals are Student's t, 95%, over the seeds; each stands alone, none is corrected for their number."
COUNTING = (
    "Best and final are over the validated steps after 0. The best of many noisy validations is above what the model "
    "would score again, the more so the more there are; the final is not."
)

# Knobs by which variants of a rule differ, and what else tells runs of one name apart. A run's seed is in its label.
KNOBS = ("divergence", "estimator", "weights", "budget", "gate", "delta", "delta_b", "w_min", "trace", "horizon",
         "budget_quantile", "budget_scale", "budget_cap")  # fmt: skip
_TRAINING = ("advantage", "prompts", "responses", "mini_batch", "learning_rate", "max_response_length",
             "clip_low", "clip_high")  # fmt: skip
_TOLD_APART = (*KNOBS, "topk", "restore_strength", *ASYNC_LABELS, *_TRAINING)


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
    def interval(self) -> tuple[float, float, float]:
        return interval(self.values)

    @property
    def mean(self) -> str:
        return self.text(self.interval[0])

    @property
    def ends(self) -> list[str]:
        return [self.text(end) for end in self.interval[1:] if isfinite(end)]

    @property
    def verdict(self) -> str:
        """Of a difference: ``higher``, ``lower``, ``undecided``, or why there is no interval."""
        _, low, high = self.interval
        if not self.ends:
            return "one pair: no interval" if self.values else NO_PAIR
        return "higher" if low > 0 else "lower" if high < 0 else "undecided"

    def __str__(self) -> str:
        if not self.values:
            return NO_PAIR if self.signed else "no score"
        span = f" [{', '.join(self.ends)}]" if self.ends else "" if self.signed else f" ({NO_INTERVAL})"
        return f"{self.mean}{span}" + (f", {self.verdict}" if self.signed else "")


@dataclass(frozen=True)
class Comparison:
    """Methods of a model, scored by ``kind``, the others compared with ``baseline``.

    ``runs`` has a row a run, by method and seed: ``method``, ``seed`` (empty when unknown), ``key`` (the seed, one of
    its own when unknown), ``curve`` (score by step after 0), ``best`` and ``final`` of it with ``best_step`` and
    ``final_step``, ``collapsed``, ``masked`` (mean share of the tokens over the steps, percent), ``seconds`` (median of
    a step's) and ``hours`` (of all logged steps); NaN where nothing was logged to count them from.
    """

    model: str
    kind: str
    runs: pd.DataFrame
    baseline: str

    @cached_property
    def by_method(self) -> dict[str, pd.DataFrame]:
        return {str(name): runs for name, runs in self.runs.groupby("method", sort=False)}

    @property
    def others(self) -> list[str]:
        return [method for method in self.by_method if method != self.baseline]

    @property
    def seeds(self) -> list[str]:
        """The seeds that are known, in numeric order."""
        return sorted({seed for seed in self.runs["seed"] if seed}, key=seed_rank)

    @property
    def kind_name(self) -> str:
        return f"validation {self.kind}" if self.kind == ACCURACY else self.kind

    def values(self, method: str, part: str) -> list[float]:
        return self.by_method[method].groupby("key", sort=False)[part].mean().dropna().tolist()

    def differences(self, method: str, measure: str) -> dict[str, float]:
        """Seed -> method less baseline, up to the last step that both validated, by the seeds that both have.

        Where a seed has several runs of a method, the mean over all pairs of it.
        """
        pairs: dict[str, list[float]] = {}
        for (seed, one), (other, two) in product(self._curves(method), self._curves(self.baseline)):
            common = one.index.intersection(two.index)
            if seed and seed == other and len(common):
                one, two = one.loc[: common[-1]], two.loc[: common[-1]]
                gap = one.iloc[-1] - two.iloc[-1] if measure == "final" else one.max() - two.max()
                pairs.setdefault(seed, []).append(float(gap))
        return {seed: sum(values) / len(values) for seed, values in pairs.items()}

    def _curves(self, method: str) -> list[tuple[str, pd.Series]]:
        return list(zip(self.by_method[method]["seed"], self.by_method[method]["curve"], strict=True))

    def score(self, method: str, measure: str) -> Shown:
        return Shown(self.values(method, measure), self.kind)

    def difference(self, method: str, measure: str) -> Shown:
        return Shown(list(self.differences(method, measure).values()), self.kind, signed=True)

    def sentence(self) -> str:
        """The result in words: the final scores, and what the pairs say."""
        finals = [f"{name} {self.score(name, 'final')}" for name in self.by_method if self.values(name, "final")]
        if not finals:
            return f"{self.model}: no run has a score."
        pairs = [(name, self.difference(name, "final")) for name in self.others]
        said = [f"{name} less {self.baseline}: {found}." for name, found in pairs if found.values]
        return " ".join([f"{self.model}, {self.kind_name} at the end: {'; '.join(finals)}.", *said])

    def method_rows(self) -> list[dict[str, Any]]:
        """A row a method: name, runs, seeds, scores with the steps they are from, masked share, time."""
        scores = {(name, measure): self.score(name, measure) for name in self.by_method for measure in MEASURES}
        rows = []
        for name, runs in self.by_method.items():
            row = {"name": name, "runs": len(runs), "seeds": runs["key"].nunique(), "cells": []}
            for measure in MEASURES:
                steps = sorted(runs[f"{measure}_step"].dropna().astype(int))
                at = "" if not steps else f"step {steps[0]}" if len({*steps}) == 1 else f"steps {steps[0]}–{steps[-1]}"
                score = scores[name, measure]
                means = [other.interval[0] for (_, of), other in scores.items() if of == measure and other.values]
                top = len(means) > 1 and score.interval[0] == max(means)
                row["cells"].append({"score": score, "at": at, "top": top})
            row["collapsed"] = int(runs["collapsed"].sum())
            for part, unit in (("masked", "{:.2f}%".format), ("seconds", seconds), ("hours", duration)):
                found = self.values(name, part)
                row[part] = unit(interval(found)[0]) if found else ABSENT
            rows.append(row)
        return rows

    @property
    def reach(self) -> float:
        """How far from 0 the differences at the end are drawn; the wide interval of two pairs may lie beyond."""
        finals = [self.difference(name, "final") for name in self.others]
        ends = [end for found in finals if len(found.values) > 2 for end in found.interval[1:]]
        return max(map(abs, [*ends, *(x for found in finals for x in found.values)]), default=0.0) or 1.0

    def seed_rows(self) -> tuple[list[str], list[tuple[str, list[pd.DataFrame]]]]:
        """Heads and, a row a method, the runs of each seed, unknown ones last; none where there is one run a method."""
        if len(self.seeds) < 2 and not self.runs["method"].duplicated().any():
            return [], []
        keys = [*self.seeds, *[""] * bool((self.runs["seed"] == "").any())]
        rows = [(name, [runs[runs["seed"] == seed] for seed in keys]) for name, runs in self.by_method.items()]
        return [f"seed {seed or 'unknown'}" for seed in keys], rows


def compare(entries: Sequence[Entry], model: str, baseline: str | None = None) -> Comparison:
    """The runs of ``model`` that logged a step, side by side; the baseline is the first method in the paper's order,
    else by name, where none is named or the model has no run of it."""
    own = [entry for entry in entries if entry.label.model == model and len(entry.frame)]
    kind, methods = kind_of(own), grouped(own)
    rows: list[dict[str, Any]] = []
    for method, runs in methods.items():
        for entry in sorted(runs, key=lambda entry: seed_rank(entry.label.seed)):
            curve = entry.score.curve if entry.score.kind == kind else pd.Series(dtype=float)
            curve = curve[curve.index > 0]
            scores = (curve.max(), curve.iloc[-1], curve.idxmax(), curve.index[-1]) if len(curve) else [nan] * 4
            row = dict(zip(("best", "final", "best_step", "final_step"), scores, strict=True))
            masked, times, seed = MASKED_OR_CLIPPED.of(entry.frame), STEP_TIME.of(entry.frame), entry.label.seed
            row |= {"method": method, "seed": seed, "key": seed or f"unknown {len(rows)}", "curve": curve}
            row |= {"collapsed": entry.score.collapsed_at is not None, "masked": 100 * masked.mean()}
            row |= {"seconds": times.median(), "hours": times.sum() / 3600 if len(times) else nan}
            rows.append(row)
    return Comparison(model, kind, pd.DataFrame(rows), str(baseline) if baseline in methods else next(iter(methods)))


def grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Runs by method, the paper's in its order and then others by name. Runs of one name whose settings differ are
    methods of their own, named by what differs, unless the name is the user's (``--label``)."""
    named: dict[str, list[Entry]] = {}
    for entry in entries:
        named.setdefault(entry.label.method, []).append(entry)
    found: dict[str, list[Entry]] = {}
    for method in sorted(named, key=lambda name: (paper.METHODS.index(name) if name in paper.METHODS else 99, name)):
        told = [{} if entry.named else _told(entry) for entry in named[method]]
        varying = {k for k in set().union(*told) if len({str(of[k]) for of in told if k in of}) > 1}
        names = [", ".join([method, *(f"{key} {short(of[key])}" for key in of if key in varying)]) for of in told]
        for name, entry in sorted(zip(names, named[method], strict=True), key=lambda pair: pair[0]):
            found.setdefault(name, []).append(entry)
    return found


def seed_rank(seed: str) -> tuple[bool, int, str]:
    return (False, int(seed), "") if seed.isdecimal() else (True, 0, seed)


def _told(entry: Entry) -> dict[str, object]:
    settings = entry.settings
    idle = unused_knobs(settings) if "loss_mode" in settings else set()
    usual = {key: value or "off" for key, (_, value) in ASYNC_LABELS.items()} if settings else {}
    keys = (*_TOLD_APART, *own_knobs(settings))
    found = usual | {key: settings[key] for key in keys if key in settings and key not in idle}
    return {key.removeprefix(OWN).replace("learning_rate", "lr"): value for key, value in found.items()}


def comparison_csv(comparisons: Sequence[Comparison]) -> str:
    """A row a model and method: seeds, best and final with their intervals, masked share, time."""
    heads = ["model", "method", "measure", "runs", "seeds", "collapsed"]
    heads += [f"{name}_{part}" for name in MEASURES for part in ("mean", "low", "high", "n")]
    heads += ["masked_percent", "seconds_a_step", "hours_a_run"]
    rows = []
    for c in comparisons:
        for name, runs in c.by_method.items():
            counts = [len(runs), runs["key"].nunique(), int(runs["collapsed"].sum())]
            scores = [x for measure in MEASURES for x in _four(c.values(name, measure))]
            more = [_four(c.values(name, part))[0] for part in ("masked", "seconds", "hours")]
            rows.append([c.model, name, c.kind, *counts, *scores, *more])
    return csv_text(heads, rows)


def differences_csv(comparisons: Sequence[Comparison]) -> str:
    """A row a model, method and measure: mean paired difference to the baseline, interval, pairs, each seed's own."""
    heads = ["model", "method", "baseline", "measure", "mean", "low", "high", "n", "by_seed"]
    rows = []
    for c in comparisons:
        for method, measure in product(c.others, MEASURES):
            found = c.differences(method, measure)
            each = " ".join(f"{seed}:{value:+.6g}" for seed, value in found.items())
            rows.append([c.model, method, c.baseline, measure, *_four(list(found.values())), each])
    return csv_text(heads, rows)


def _four(values: Sequence[float]) -> list[str]:
    """mean, low, high, n; empty where there is none."""
    return [*(f"{x:.6g}" if isfinite(x) else "" for x in interval(values)), str(len(values))]
