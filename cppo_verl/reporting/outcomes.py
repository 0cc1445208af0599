"""Runs of one model side by side, whatever the model: methods, seeds, and differences between runs of the same seed.

Every run counts with what it scored, collapsed ones too: to leave them out would favour the method that collapses. Runs
of one method and seed count as one, with their mean: run again, a seed says nothing new of other seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting import names
from cppo_verl.reporting.labels import KNOBS, LabelError
from cppo_verl.reporting.scores import Entry, kind_of
from cppo_verl.reporting.settings import ASYNC_LABELS, OWN, own_knobs, unused_knobs
from cppo_verl.reporting.summary import first_logged, series

MEASURES = ("best", "final")

# What tells runs of one name apart. A run's seed is in its label.
_TRAINING = ("advantage", "prompts", "responses", "mini_batch", "learning_rate", "max_response_length")
_TOLD_APART = (*KNOBS, "topk", "restore_strength", *ASYNC_LABELS, *_TRAINING)

Interval = tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True)
class Outcome:
    """What became of a run; numbers are None where nothing was logged to count them from.

    Attributes:
        curve: score by validated step, the steps after 0; empty when the run was scored by something else than others.
        masked: mean share of the response tokens over the steps, in percent. seconds: median of a step's.
        hours: of all logged steps.
    """

    place: str
    seed: str
    curve: pd.Series
    collapsed: bool
    masked: float | None
    seconds: float | None
    hours: float | None

    @property
    def best(self) -> float | None:
        return float(self.curve.max()) if len(self.curve) else None

    @property
    def final(self) -> float | None:
        """The score at the last validated step."""
        return float(self.curve.iloc[-1]) if len(self.curve) else None

    @property
    def steps(self) -> tuple[int, int] | None:
        """Where ``best`` and ``final`` are from."""
        return (int(self.curve.idxmax()), int(self.curve.index[-1])) if len(self.curve) else None

    def upto(self, step: int) -> pd.Series:
        return self.curve[self.curve.index <= step]


@dataclass(frozen=True)
class Difference:
    """``method`` less ``baseline`` by seed, in ``measure``: each pair up to the last step that both of it validated."""

    method: str
    baseline: str
    measure: str
    by_seed: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Methods of a model. ``kind`` is what is scored, ``methods`` outcomes by method, by seed within."""

    model: str
    kind: str
    methods: Mapping[str, tuple[Outcome, ...]]
    baseline: str
    differences: tuple[Difference, ...]

    @property
    def seeds(self) -> list[str]:
        """The seeds that are known, in numeric order."""
        found = {outcome.seed for outcomes in self.methods.values() for outcome in outcomes if outcome.seed}
        return sorted(found, key=_seed_rank)

    def difference(self, method: str, measure: str) -> Difference | None:
        return next((d for d in self.differences if (d.method, d.measure) == (method, measure)), None)


def compare(entries: Sequence[Entry], model: str, baseline: str | None = None) -> Comparison:
    """The runs of ``model`` that logged a step, side by side.

    Args:
        baseline: the method that others are compared with; without it, or where the model has no run of it, the first
            in the paper's order, else by name.
    """
    own = [entry for entry in entries if entry.label.model == model and entry.run is not None]
    kind = kind_of(own)
    methods = {
        name: tuple(sorted((_outcome(entry, kind) for entry in runs), key=lambda outcome: _seed_rank(outcome.seed)))
        for name, runs in grouped(own).items()
    }
    base = baseline if baseline in methods else next(iter(methods), "")
    differences = [
        _difference(methods, name, base, measure) for name in methods if name != base for measure in MEASURES
    ]
    return Comparison(model, kind, methods, base, tuple(differences))


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
    by_label: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: _rank(entry.label.method)):
        by_label.setdefault(entry.label.method, []).append(entry)
    found: dict[str, list[Entry]] = {}
    for method, runs in by_label.items():
        varying = _varying([entry for entry in runs if not entry.named])
        for entry in runs:
            words = [] if entry.named else [_words(key, value) for key, value in _told(entry).items() if key in varying]
            found.setdefault(", ".join([method, *words]), []).append(entry)
    return dict(sorted(found.items(), key=lambda item: (_rank(item[1][0].label.method), item[0])))


def _rank(method: str) -> tuple[int, str]:
    return paper.METHODS.index(method) if method in paper.METHODS else len(paper.METHODS), method


def _seed_rank(seed: str) -> tuple[bool, int, str]:
    return (False, int(seed), "") if seed.isdigit() else (True, 0, seed)


def _told(entry: Entry) -> dict[str, object]:
    settings = entry.run.settings if entry.run is not None else {}
    idle = unused_knobs(settings) if "loss_mode" in settings else set()
    keys = (*_TOLD_APART, *own_knobs(settings))
    found = {key: settings[key] for key in keys if key in settings and key not in idle}
    usual = {key: value or "off" for key, (_, value) in ASYNC_LABELS.items()} if settings else {}
    return {**usual, **found}


def _varying(entries: Sequence[Entry]) -> set[str]:
    told = [_told(entry) for entry in entries]
    return {key for key in set().union(*told) if len({str(of[key]) for of in told if key in of}) > 1}


def _words(key: str, value: object) -> str:
    key = key.removeprefix(OWN)
    return f"{key.replace('learning_rate', 'lr')} {value:g}" if isinstance(value, float) else f"{key} {value}"


T = TypeVar("T")


def by_seed(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """Values by their seed; a value whose seed is unknown is a seed of its own."""
    found: dict[str, list[T]] = {}
    for number, (seed, value) in enumerate(pairs):
        found.setdefault(seed or f"unknown {number}", []).append(value)
    return found


def seed_count(outcomes: Sequence[Outcome]) -> int:
    """How many seeds the runs are of."""
    return len(by_seed((outcome.seed, outcome) for outcome in outcomes))


def known(outcomes: Sequence[Outcome], part: str) -> list[float]:
    """This attribute of the runs that have it, a number a seed."""
    pairs = [(outcome.seed, value) for outcome in outcomes if (value := getattr(outcome, part)) is not None]
    return [fmean(values) for values in by_seed(pairs).values()]


def _outcome(entry: Entry, kind: str) -> Outcome:
    assert entry.run is not None
    curve = entry.score.curve if entry.score.kind == kind else pd.Series(dtype=float)
    masked = first_logged(entry.run, names.MASKED_OR_CLIPPED)
    times = series(entry.run, names.TIME_STEP)
    return Outcome(
        entry.place,
        entry.label.seed,
        curve[curve.index > 0],
        entry.score.collapsed_at is not None,
        100 * float(series(entry.run, masked).mean()) if masked else None,
        float(times.median()) if len(times) else None,
        float(times.sum()) / 3600 if len(times) else None,
    )


def _difference(methods: Mapping[str, Sequence[Outcome]], name: str, base: str, measure: str) -> Difference:
    """By the seeds that both have; where a seed has several runs of a method, the mean over all pairs of it."""
    by_seed = {}
    for seed in dict.fromkeys(outcome.seed for outcome in methods[name] if outcome.seed):
        pairs = [(a, b) for a in methods[name] for b in methods[base] if a.seed == b.seed == seed]
        values = [value for a, b in pairs if (value := paired(a, b, measure)) is not None]
        if values:
            by_seed[seed] = fmean(values)
    return Difference(name, base, measure, by_seed)


def paired(a: Outcome, b: Outcome, measure: str) -> float | None:
    """``a`` less ``b`` up to the last step that both validated, ``final`` at it; None when there is no such step."""
    common = a.curve.index.intersection(b.curve.index)
    if common.empty:
        return None
    last = int(common[-1])
    if measure == "final":
        return float(a.curve.loc[last] - b.curve.loc[last])
    return float(a.upto(last).max() - b.upto(last).max())
