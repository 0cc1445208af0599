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
from cppo_verl.reporting.labels import Label
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.metrics import GRAD_NORM, REWARD, series
from cppo_verl.reporting.summary import validation, validation_metric

SAMPLES = 16
COLUMNS = (*paper.BENCHMARKS, "avg")

COLLAPSE_FALL = 0.5  # of the best score so far
COLLAPSE_CHECKS = 2  # validations at the end that must all lie below
COLLAPSE_FLOOR = 2.0  # percent; a best below it is too near to zero to fall from
COLLAPSE_STEPS = 3  # steps at the end without a finite gradient norm
COLLAPSE_RULE = (
    f"A run counts as collapsed when its last {COLLAPSE_CHECKS} or more validations up to T_stop all score below "
    f"{COLLAPSE_FALL:.0%} of the best score before them (a best of {COLLAPSE_FLOOR:g} or more), or when the gradient "
    f"norm is NaN or infinite at each of its last {COLLAPSE_STEPS} or more logged steps up to T_stop."
)

ACCURACY, VALIDATION_REWARD, TRAINING_REWARD = KINDS = ("accuracy", "validation reward", "training reward")
REWARD_POINTS = 20  # a training reward is scored in means of this share of the run's steps


@dataclass(frozen=True)
class Score:
    """What a run scored.

    Attributes:
        table: score by validated step and benchmark, the log's whole length, step 0 included; accuracies in percent,
            rewards as logged.
        kind: what is scored, one of ``KINDS``.
        best: score by benchmark, and ``avg``, at ``step``, the best up to T_stop; empty and None without any.
        last_step: where the log ends.
        collapsed_at: step from which the run was collapsed, with ``collapse`` the reason; None when it was not.
        absent: why there is no score; empty when there is one.
        notes: sentences about validations that are not the paper's.
    """

    table: pd.DataFrame
    last_step: int = 0
    kind: str = ACCURACY
    best: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    collapsed_at: int | None = None
    collapse: str = ""
    absent: str = ""
    notes: tuple[str, ...] = ()

    @property
    def curve(self) -> pd.Series:
        """The mean over the benchmarks by validated step."""
        return self.table.mean(axis=1)


@dataclass(frozen=True)
class Entry:
    """A run with its label and its score.

    ``place`` is the path as given, ``run`` None when it has logged no step, ``named`` whether the label is the user's.
    """

    place: str
    label: Label
    run: Run | None
    score: Score
    notes: tuple[str, ...] = ()
    named: bool = False

    def remarks(self) -> list[str]:
        """What a reader should know of the run."""
        return [x for x in (self.score.collapse, self.score.absent, *self.score.notes, *self.notes) if x]


def t_stop(model: str) -> int | None:
    """The last step that counts; None for a model that the paper does not train."""
    return paper.t_stop().get(model)


def kind_of(entries: Iterable[Entry]) -> str:
    """What runs are compared by: accuracy where any of them has it, then validation reward, then training reward."""
    found = {entry.score.kind for entry in entries if len(entry.score.table)}
    return next((kind for kind in KINDS if kind in found), ACCURACY)


def score_run(run: Run, model: str) -> Score:
    """The best mean score up to T_stop; a model of the paper is scored on the paper's benchmarks alone."""
    stop = math.inf if t_stop(model) is None else float(paper.t_stop()[model])
    score = _papers_validations(run) if t_stop(model) is not None else _own_validations(run)
    curve = score.curve
    counted = curve[(curve.index > 0) & (curve.index <= stop)]
    score = _with_collapse(replace(score, last_step=int(run.frame.index[-1])), run, counted, stop)
    if counted.empty:
        return replace(score, absent=score.absent or "no step after 0 and up to T_stop validated every benchmark")
    step = int(counted.idxmax())
    best = {str(name): float(x) for name, x in score.table.loc[step].items()}
    return replace(score, best=best | {"avg": float(counted.loc[step])}, step=step)


def _papers_validations(run: Run) -> Score:
    """Accuracies on the three benchmarks, Avg@16 or what there is of them."""
    found = validation(run.frame)
    if found is None or found.kind != "accuracy":
        return Score(pd.DataFrame(), absent="no validation accuracy was logged")
    missing = [name for name in paper.BENCHMARKS if name not in found.by_source]
    if missing:
        return Score(pd.DataFrame(), absent=f"not validated on {', '.join(missing)}")
    exact = {name: series(run.frame, validation_metric(name, "acc", SAMPLES)) for name in paper.BENCHMARKS}
    other = [name for name, values in exact.items() if values.empty]
    notes = [f"{name} was validated with {found.samples[name]} answers a prompt, not {SAMPLES}" for name in other]
    table = pd.DataFrame(exact | {name: found.by_source[name] for name in other}).dropna()
    return Score(100 * table, notes=tuple(notes))


def _own_validations(run: Run) -> Score:
    """Whatever was validated; else the training reward, in means."""
    found = validation(run.frame)
    if found is not None:
        accuracy = found.kind == "accuracy"
        table = pd.DataFrame(found.by_source).dropna()
        return Score(100 * table if accuracy else table, kind=ACCURACY if accuracy else VALIDATION_REWARD)
    values = REWARD.of(run.frame)
    if values.empty:
        return Score(pd.DataFrame(), absent="neither a validation nor a training reward was logged")
    width = max(1, len(values) // REWARD_POINTS)
    blocks = values.groupby(np.arange(len(values)) // width)
    means = blocks.mean().set_axis(pd.Index([int(part.index[-1]) for _, part in blocks], name="step"))
    note = f"no validation was logged; scored by the training reward, in means of {width} steps"
    return Score(means.to_frame(TRAINING_REWARD), kind=TRAINING_REWARD, notes=(note,))


def _with_collapse(score: Score, run: Run, counted: pd.Series, stop: float) -> Score:
    if score.kind == ACCURACY and (fell := collapse(counted)) is not None:  # rewards have no zero to fall to
        return replace(
            score, collapsed_at=fell[0], collapse=f"score below half of {fell[1]:.2f} from step {fell[0]} on"
        )
    if (broken := broken_gradient(run, stop)) is not None:
        return replace(score, collapsed_at=broken, collapse=f"gradient norm not finite from step {broken} on")
    return score


def collapse(counted: pd.Series) -> tuple[int, float] | None:
    """First step of the validations at the end that all lie below ``COLLAPSE_FALL`` of the best before them, and that
    best; None when there are fewer than ``COLLAPSE_CHECKS``."""
    scores = counted.to_numpy(float)
    best_before = np.maximum.accumulate(scores)
    for start in range(1, len(scores) - COLLAPSE_CHECKS + 1):
        best = best_before[start - 1]
        if best >= COLLAPSE_FLOOR and (scores[start:] < COLLAPSE_FALL * best).all():
            return int(counted.index[start]), float(best)
    return None


def broken_gradient(run: Run, stop: float) -> int | None:
    """First of the steps at the end of the log (up to ``stop``) that all have a gradient norm of NaN or infinity; None
    when there are fewer than ``COLLAPSE_STEPS``."""
    good = max((step for step in series(run.frame, GRAD_NORM).index if step <= stop), default=-math.inf)
    tail = [int(step) for step in run.nonfinite.get(GRAD_NORM, ()) if good < step <= stop]
    return tail[0] if len(tail) >= COLLAPSE_STEPS else None


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
        return self.ends is not None and self.ends < (t_stop(self.model) or 0)


def cell_of(entries: Sequence[Entry], model: str, method: str) -> Cell:
    """The runs of a model and method, whether there are any or not."""
    own = [entry.score for entry in entries if (entry.label.model, entry.label.method) == (model, method)]
    rows = [row for row in paper.breakdown() if (row.model, row.method) == (model, method)]
    printed = {name: getattr(row, name) for row in rows for name in COLUMNS}
    collapsed = sum(score.collapsed_at is not None for score in own)
    scored = [score for score in own if score.step is not None and score.collapsed_at is None]
    if not scored:
        state = "collapse" if collapsed else "unscored" if own else "missing"
        return Cell(model, method, state, collapsed=collapsed, runs=len(own), paper=printed)
    table = pd.DataFrame([dict(score.best) for score in scored]).dropna(axis=1)
    n, errors = len(scored), table.sem()
    scores = {str(x): Estimate(float(table[x].mean()), float(errors[x]) if n > 1 else None, n) for x in table}
    steps = tuple(score.step for score in scored if score.step is not None)
    ends = min(score.last_step for score in scored)
    return Cell(model, method, "scored", scores, steps, collapsed, len(own), ends, printed)
