"""Runs of one model side by side, whatever the model: methods, seeds, and differences between runs of the same seed.

Every run counts with what it scored, collapsed ones too: to leave them out would favour the method that collapses. Runs
of one method and seed count as one, with their mean: run again, a seed says nothing new of other seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import nan

import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting.labels import KNOBS, LabelError
from cppo_verl.reporting.metrics import MASKED_OR_CLIPPED, STEP_TIME
from cppo_verl.reporting.scores import Entry, kind_of
from cppo_verl.reporting.settings import ASYNC_LABELS, OWN, own_knobs, unused_knobs
from cppo_verl.reporting.text import short

MEASURES = ("best", "final")

# What tells runs of one name apart. A run's seed is in its label.
_TRAINING = ("advantage", "prompts", "responses", "mini_batch", "learning_rate", "max_response_length")
_TOLD_APART = (*KNOBS, "topk", "restore_strength", *ASYNC_LABELS, *_TRAINING)


@dataclass(frozen=True)
class Comparison:
    """Methods of a model.

    Attributes:
        kind: what is scored.
        runs: a row a run, by method and seed: ``method``, ``seed`` (empty when unknown), ``key`` (the seed, one of its
            own when unknown), ``best`` and ``final`` score after step 0 with ``best_step`` and ``final_step``,
            ``collapsed``, ``masked`` (mean share of the tokens over the steps, percent), ``seconds`` (median of a
            step's) and ``hours`` (of all logged steps); NaN where nothing was logged to count them from.
        baseline: the method that others are compared with.
        differences: (method, measure) -> seed -> method less baseline, up to the last step that both validated.
    """

    model: str
    kind: str
    runs: pd.DataFrame
    baseline: str
    differences: Mapping[tuple[str, str], dict[str, float]]

    @cached_property
    def by_method(self) -> dict[str, pd.DataFrame]:
        return {str(name): runs for name, runs in self.runs.groupby("method", sort=False)}

    @cached_property
    def by_seed(self) -> dict[str, pd.DataFrame]:
        """By method: a row a seed, the means of its runs."""
        numbers = ["best", "final", "masked", "seconds", "hours"]
        means = self.runs.groupby(["method", "key"], sort=False)[numbers].mean()
        return {str(name): rows for name, rows in means.groupby(level="method", sort=False)}

    @property
    def methods(self) -> list[str]:
        return list(self.by_method)

    @property
    def others(self) -> list[str]:
        return [method for method in self.methods if method != self.baseline]

    @property
    def seeds(self) -> list[str]:
        """The seeds that are known, in numeric order."""
        return sorted({seed for seed in self.runs["seed"] if seed}, key=seed_rank)

    def values(self, method: str, part: str) -> list[float]:
        """This column of the method's runs that have it, a number a seed."""
        return self.by_seed[method][part].dropna().tolist()


def compare(entries: Sequence[Entry], model: str, baseline: str | None = None) -> Comparison:
    """The runs of ``model`` that logged a step, side by side.

    Args:
        baseline: the method that others are compared with; without it, or where the model has no run of it, the first
            in the paper's order, else by name.
    """
    own = [entry for entry in entries if entry.label.model == model and entry.run is not None]
    kind, methods = kind_of(own), grouped(own)
    rows: list[dict[str, object]] = []
    curves: list[pd.Series] = []
    for method, runs in methods.items():
        for entry in sorted(runs, key=lambda entry: seed_rank(entry.label.seed)):
            curve = entry.score.curve if entry.score.kind == kind else pd.Series(dtype=float)
            curves.append(curve[curve.index > 0])
            key = entry.label.seed or f"unknown {len(rows)}"
            rows.append({"method": method, "seed": entry.label.seed, "key": key} | _numbers(entry, curves[-1]))
    base = baseline if baseline in methods else next(iter(methods), "")
    differences = {
        (name, measure): _difference(rows, curves, name, base, measure)
        for name, measure in product(methods, MEASURES)
        if name != base
    }
    return Comparison(model, kind, pd.DataFrame(rows), base, differences)


def check_baseline(comparisons: Sequence[Comparison], baseline: str | None) -> None:
    """A baseline is a method of one model at least.

    Raises:
        LabelError: it is of none; names those there are.
    """
    known = sorted({name for comparison in comparisons for name in comparison.methods})
    if baseline is not None and baseline not in known:
        raise LabelError(f"--baseline {baseline}: no run is of that method. There are: {', '.join(known) or 'none'}.")


def grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Runs by method, the paper's in its order and then others by name.

    Runs of one name whose settings differ are methods of their own, named by what differs, unless the name is the
    user's (``--label``).
    """
    named: dict[str, list[Entry]] = {}
    for entry in entries:
        named.setdefault(entry.label.method, []).append(entry)
    found: dict[str, list[Entry]] = {}
    for method in sorted(named, key=method_rank):
        told = [{} if entry.named else _told(entry) for entry in named[method]]
        varying = {k for k in set().union(*told) if len({str(of[k]) for of in told if k in of}) > 1}
        names = [", ".join([method, *(f"{key} {short(of[key])}" for key in of if key in varying)]) for of in told]
        for name, entry in sorted(zip(names, named[method], strict=True), key=lambda pair: pair[0]):
            found.setdefault(name, []).append(entry)
    return found


def method_rank(method: str) -> tuple[int, str]:
    return paper.METHODS.index(method) if method in paper.METHODS else len(paper.METHODS), method


def seed_rank(seed: str) -> tuple[bool, int, str]:
    return (False, int(seed), "") if seed.isdecimal() else (True, 0, seed)


def _told(entry: Entry) -> dict[str, object]:
    settings = entry.run.settings if entry.run is not None else {}
    idle = unused_knobs(settings) if "loss_mode" in settings else set()
    keys = (*_TOLD_APART, *own_knobs(settings))
    usual = {key: value or "off" for key, (_, value) in ASYNC_LABELS.items()} if settings else {}
    found = usual | {key: settings[key] for key in keys if key in settings and key not in idle}
    return {key.removeprefix(OWN).replace("learning_rate", "lr"): value for key, value in found.items()}


def _numbers(entry: Entry, curve: pd.Series) -> dict[str, object]:
    assert entry.run is not None
    masked, times = MASKED_OR_CLIPPED.of(entry.run.frame), STEP_TIME.of(entry.run.frame)
    scores = (curve.max(), curve.iloc[-1], curve.idxmax(), curve.index[-1]) if len(curve) else [nan] * 4
    found = dict(zip(("best", "final", "best_step", "final_step"), scores, strict=True))
    hours = times.sum() / 3600 if len(times) else nan
    found |= {"collapsed": entry.score.collapsed_at is not None, "masked": 100 * masked.mean()}
    return found | {"seconds": times.median(), "hours": hours}


def _difference(
    rows: Sequence[Mapping[str, object]], curves: Sequence[pd.Series], name: str, base: str, measure: str
) -> dict[str, float]:
    """By the seeds that both have; where a seed has several runs of a method, the mean over all pairs of it."""
    of = [
        [(str(row["seed"]), curve) for row, curve in zip(rows, curves, strict=True) if row["method"] == method]
        for method in (name, base)
    ]
    pairs: dict[str, list[float]] = {}
    for (seed, ours), (other, theirs) in product(*of):
        common = ours.index.intersection(theirs.index)
        if seed and seed == other and len(common):
            one, two = ours.loc[: common[-1]], theirs.loc[: common[-1]]
            gap = one.iloc[-1] - two.iloc[-1] if measure == "final" else one.max() - two.max()
            pairs.setdefault(seed, []).append(float(gap))
    return {seed: sum(values) / len(values) for seed, values in pairs.items()}
