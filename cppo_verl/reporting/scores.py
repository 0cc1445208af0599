"""A run's score as the paper counts it, whether it collapsed, and scores of several seeds as one cell of a table.

Scores are in percent. The steps that count are 1 to T_stop: step 0 validates the model before training and is no
checkpoint's. A model that the paper does not train has no T_stop, and where it was not validated for accuracy it is
scored by what was logged: validation reward, else training reward.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting import names
from cppo_verl.reporting.labels import Label
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.summary import Validation, first_logged, series, validation_metric
from cppo_verl.reporting.summary import validation as any_validation

SAMPLES = 16

COLLAPSE_FALL = 0.5  # of the best score so far
COLLAPSE_CHECKS = 2  # validations at the end that must all lie below
COLLAPSE_FLOOR = 2.0  # percent; a best below it is too near to zero to fall from
COLLAPSE_STEPS = 3  # steps at the end without a finite gradient norm

ACCURACY, VALIDATION_REWARD, TRAINING_REWARD = KINDS = ("accuracy", "validation reward", "training reward")
REWARD_POINTS = 20  # a training reward is scored in means of this share of the run's steps

COLLAPSE_RULE = (
    f"A run counts as collapsed when its last {COLLAPSE_CHECKS} or more validations up to T_stop all score below "
    f"{COLLAPSE_FALL:.0%} of the best score before them (a best of {COLLAPSE_FLOOR:g} or more), or when the gradient "
    f"norm is NaN or infinite at each of its last {COLLAPSE_STEPS} or more logged steps up to T_stop."
)


@dataclass(frozen=True)
class Score:
    """What a run scored.

    Attributes:
        curve: mean over the benchmarks by validated step, the log's whole length, step 0 included.
        kind: what is scored, one of ``KINDS``; accuracy in percent, rewards as logged.
        by_benchmark: benchmark -> score at ``step``. mean: their unweighted mean, the best up to T_stop.
        step: where it was reached. last_step: where the log ends. All three are None / empty without a validation.
        collapsed_at: step from which the run was collapsed, with ``collapse`` the reason; None when it was not.
        absent: why there is no score; empty when there is one.
        notes: sentences about validations that are not the paper's.
    """

    curve: pd.Series
    last_step: int
    by_benchmark: Mapping[str, float] = field(default_factory=dict)
    mean: float | None = None
    step: int | None = None
    collapsed_at: int | None = None
    collapse: str = ""
    absent: str = ""
    notes: tuple[str, ...] = ()
    kind: str = ACCURACY


@dataclass(frozen=True)
class Entry:
    """A run with its label and its score.

    ``place`` is the path as given, ``run`` None when it has logged no step, ``named`` whether the label is the user's.
    """

    place: str
    label: Label
    run: Run | None
    score: Score
    knobs: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    named: bool = False


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error (standard deviation with n - 1, over the root of n; None for one)."""

    mean: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """A model and method: what its runs scored beside the paper.

    Attributes:
        state: ``scored``, ``collapse`` (every run), ``unscored`` (runs without a score) or ``missing`` (no run).
        scores: benchmark (and ``avg``) -> estimate over the runs that did not collapse.
        steps: best steps of these runs. collapsed, runs: how many there are. ends: the last step of the shortest run.
        paper: benchmark (and ``avg``) -> the paper's score, None where it collapsed; empty where the paper has no row.
    """

    model: str
    method: str
    state: str
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    collapsed: int = 0
    runs: int = 0
    ends: int | None = None
    paper: Mapping[str, float | None] = field(default_factory=dict)

    def shown(self, name: str) -> float | None:
        """The score as printed, to two decimals."""
        return round(self.scores[name].mean, 2) if name in self.scores else None

    def difference(self, name: str) -> float | None:
        """Ours as printed less the paper's; None unless both are numbers."""
        ours, theirs = self.shown(name), self.paper.get(name)
        return None if ours is None or theirs is None else round(ours - theirs, 2) + 0.0

    @property
    def unfinished(self) -> bool:
        """A run ended before T_stop, so a better step may still come."""
        stop = paper.t_stop().get(self.model)
        return self.state == "scored" and stop is not None and self.ends is not None and self.ends < stop


def t_stop(model: str) -> int | None:
    """The last step that counts; None for a model that the paper does not train."""
    return paper.t_stop().get(model)


def kind_of(entries: Iterable[Entry]) -> str:
    """What runs are compared by: accuracy where any of them has it, then validation reward, then training reward."""
    found = {entry.score.kind for entry in entries if len(entry.score.curve)}
    return next((kind for kind in KINDS if kind in found), ACCURACY)


def score_run(run: Run, model: str) -> Score:
    """The best mean score up to T_stop; a model of the paper is scored on the paper's benchmarks alone."""
    last = int(run.frame.index[-1])
    found = _validations(run, model)
    table = (100 if found.kind == ACCURACY else 1) * pd.DataFrame(found.by_benchmark).dropna()
    curve = table.mean(axis=1)
    stop = t_stop(model)
    counted = curve[(curve.index > 0) & (curve.index <= (math.inf if stop is None else stop))]
    score = Score(curve, last, absent=found.absent, notes=found.notes, kind=found.kind)
    score = _with_collapse(score, run, counted, stop)
    if counted.empty:
        why = found.absent or "no step after 0 and up to T_stop validated every benchmark"
        return replace(score, absent=why)
    best = int(counted.idxmax())
    at_best = {str(name): float(x) for name, x in table.loc[best].items()}
    return replace(score, by_benchmark=at_best, mean=float(counted.loc[best]), step=best)


def collapse(counted: pd.Series) -> tuple[int, float] | None:
    """First step of the validations at the end that all lie below ``COLLAPSE_FALL`` of the best before them, and that
    best; None when there are fewer than ``COLLAPSE_CHECKS``."""
    scores = counted.to_numpy(float)
    if len(scores) <= COLLAPSE_CHECKS:
        return None
    best_before = np.maximum.accumulate(scores)
    for start in range(1, len(scores) - COLLAPSE_CHECKS + 1):
        best = best_before[start - 1]
        if best >= COLLAPSE_FLOOR and (scores[start:] < COLLAPSE_FALL * best).all():
            return int(counted.index[start]), float(best)
    return None


def broken_gradient(run: Run, stop: int | None) -> int | None:
    """First of the steps at the end of the log (up to ``stop``) that all have a gradient norm of NaN or infinity; None
    when there are fewer than ``COLLAPSE_STEPS``."""
    limit = math.inf if stop is None else stop
    bad = [int(step) for step in run.nonfinite.get(names.GRAD_NORM, ()) if step <= limit]
    good = [int(step) for step in series(run, names.GRAD_NORM).index if step <= limit]
    tail = [step for step in bad if not good or step > good[-1]]
    return tail[0] if len(tail) >= COLLAPSE_STEPS else None


def cells_of(entries: Sequence[Entry], model: str, methods: Sequence[str]) -> list[Cell]:
    """A cell a method, in their order."""
    return [_cell([e for e in entries if (e.label.model, e.label.method) == (model, m)], model, m) for m in methods]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error over seeds; ``values`` are not empty."""
    n = len(values)
    error = float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(np.mean(values)), error, n)


def paper_scores(model: str, method: str) -> dict[str, float | None]:
    """The paper's Table 4 for a model and method by benchmark, and ``avg``; empty where it has no row."""
    for row in paper.breakdown():
        if (row.model, row.method) == (model, method):
            return {name: getattr(row, name) for name in (*paper.BENCHMARKS, "avg")}
    return {}


def _cell(entries: Sequence[Entry], model: str, method: str) -> Cell:
    printed = paper_scores(model, method)
    collapsed = sum(entry.score.collapsed_at is not None for entry in entries)
    scored = [e.score for e in entries if e.score.mean is not None and e.score.collapsed_at is None]
    base = Cell(model, method, "missing", collapsed=collapsed, runs=len(entries), paper=printed)
    if not entries:
        return base
    if not scored:
        return replace(base, state="collapse" if collapsed else "unscored")
    benchmarks = list(scored[0].by_benchmark)
    scores = {
        name: estimate([score.by_benchmark[name] for score in scored])
        for name in benchmarks
        if all(name in score.by_benchmark for score in scored)
    }
    scores["avg"] = estimate([score.mean for score in scored if score.mean is not None])
    steps = tuple(score.step for score in scored if score.step is not None)
    return replace(base, state="scored", scores=scores, steps=steps, ends=min(score.last_step for score in scored))


@dataclass(frozen=True)
class _Validations:
    """Benchmark -> scores by step (accuracies as fractions), what they are, and why there are none."""

    by_benchmark: Mapping[str, pd.Series] = field(default_factory=dict)
    kind: str = ACCURACY
    notes: tuple[str, ...] = ()
    absent: str = ""


def _validations(run: Run, model: str) -> _Validations:
    found = any_validation(run)
    if t_stop(model) is None and (found is None or found.kind != "accuracy"):
        return _rewards(run, found)
    if found is None or found.kind != "accuracy":
        return _Validations(absent="no validation accuracy was logged")
    if t_stop(model) is None:
        return _Validations(found.by_source)
    missing = [name for name in paper.BENCHMARKS if name not in found.by_source]
    if missing:
        return _Validations(absent=f"not validated on {', '.join(missing)}")
    notes, by_benchmark = [], {}
    for name in paper.BENCHMARKS:
        exact = series(run, validation_metric(name, "acc", SAMPLES))
        by_benchmark[name] = exact if len(exact) else found.by_source[name]
        if exact.empty:
            notes.append(f"{name} was validated with {found.samples[name]} answers a prompt, not {SAMPLES}")
    return _Validations(by_benchmark, notes=tuple(notes))


def _rewards(run: Run, found: Validation | None) -> _Validations:
    """What stands in for the accuracy of a model that is not the paper's."""
    if found is not None:
        return _Validations(found.by_source, VALIDATION_REWARD)
    name = first_logged(run, names.REWARD)
    if name is None:
        return _Validations(absent="neither a validation nor a training reward was logged")
    values = series(run, name)
    width = max(1, len(values) // REWARD_POINTS)
    blocks = values.groupby(np.arange(len(values)) // width)
    means = blocks.mean()
    means.index = pd.Index([int(part.index[-1]) for _, part in blocks], name="step")
    note = f"no validation was logged; scored by the training reward, in means of {width} steps"
    return _Validations({TRAINING_REWARD: means}, TRAINING_REWARD, (note,))


def _with_collapse(score: Score, run: Run, counted: pd.Series, stop: int | None) -> Score:
    fell = collapse(counted) if score.kind == ACCURACY else None  # rewards have no zero to fall to
    if fell is not None:
        step, best = fell
        return replace(score, collapsed_at=step, collapse=f"score below half of {best:.2f} from step {step} on")
    broken = broken_gradient(run, stop)
    if broken is not None:
        return replace(score, collapsed_at=broken, collapse=f"gradient norm not finite from step {broken} on")
    return score
