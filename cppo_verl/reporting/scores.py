"""A run's score as the paper counts it, and whether the run collapsed.

Scores are in percent. The steps that count are 1 to T_stop: step 0 validates the model before training and is no
checkpoint's. A model that the paper does not train has no T_stop, and where it was not validated for accuracy it is
scored by what was logged: validation reward, else training reward.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting.labels import Label
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.metrics import GRAD_NORM, REWARD, series
from cppo_verl.reporting.settings import Settings
from cppo_verl.reporting.summary import validation

SAMPLES = 16

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
            rewards as logged. kind: which of ``KINDS`` these are.
        absent: why there is no score, or empty. notes: about validations that are not the paper's.
        best: score by benchmark, and ``avg``, at ``step``, the best up to T_stop; empty and None without any.
        collapsed_at: step from which the run was collapsed, with ``collapse`` the reason; None when it was not.
    """

    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    kind: str = ACCURACY
    absent: str = ""
    notes: tuple[str, ...] = ()
    best: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    last_step: int = 0
    collapsed_at: int | None = None
    collapse: str = ""

    @property
    def curve(self) -> pd.Series:
        return self.table.mean(axis=1)


@dataclass(frozen=True)
class Entry:
    """A run with its label and its score.

    ``place`` is the path as given, ``frame`` its metrics by step that something draws, without rows when it has logged
    no step; ``settings`` as ``Run`` has them, ``named`` whether the label is the user's.
    """

    place: str
    label: Label
    frame: pd.DataFrame
    score: Score
    settings: Settings = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    named: bool = False

    def remarks(self) -> list[str]:
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
    stop = t_stop(model) or math.inf
    score = _own_validations(run) if t_stop(model) is None else _papers_validations(run)
    curve = score.curve
    counted = curve[(curve.index > 0) & (curve.index <= stop)]
    score = replace(score, last_step=int(run.frame.index[-1]))
    if score.kind == ACCURACY and (fell := collapse(counted)):  # rewards have no zero to fall to
        reason = f"score below half of {fell[1]:.2f} from step {fell[0]} on"
        score = replace(score, collapsed_at=fell[0], collapse=reason)
    elif (broken := broken_gradient(run, stop)) is not None:
        score = replace(score, collapsed_at=broken, collapse=f"gradient norm not finite from step {broken} on")
    if counted.empty:
        return replace(score, absent=score.absent or "no step after 0 and up to T_stop validated every benchmark")
    step = int(counted.idxmax())
    best = {str(name): float(x) for name, x in score.table.loc[step].items()} | {"avg": float(counted.loc[step])}
    return replace(score, best=best, step=step)


def _papers_validations(run: Run) -> Score:
    found = validation(run.frame)
    if found is None or found.kind != "accuracy":
        return Score(absent="no validation accuracy was logged")
    if missing := [name for name in paper.BENCHMARKS if name not in found.by_source]:
        return Score(absent=f"not validated on {', '.join(missing)}")
    columns, notes = {}, []
    for name in paper.BENCHMARKS:
        columns[name] = series(run.frame, f"val-core/{name}/acc/mean@{SAMPLES}")
        if columns[name].empty:
            columns[name] = found.by_source[name]
            notes.append(f"{name} was validated with {found.samples[name]} answers a prompt, not {SAMPLES}")
    return Score(100 * pd.DataFrame(columns).dropna(), notes=tuple(notes))


def _own_validations(run: Run) -> Score:
    found = validation(run.frame)
    if found is not None:
        table = pd.DataFrame(found.by_source).dropna()
        return Score(100 * table) if found.kind == "accuracy" else Score(table, VALIDATION_REWARD)
    values = REWARD.of(run.frame)
    if values.empty:
        return Score(absent="neither a validation nor a training reward was logged")
    width = max(1, len(values) // REWARD_POINTS)
    blocks = values.groupby(np.arange(len(values)) // width)
    means = blocks.mean().set_axis(pd.Index([int(part.index[-1]) for _, part in blocks], name="step"))
    note = f"no validation was logged; scored by the training reward, in means of {width} steps"
    return Score(means.to_frame(TRAINING_REWARD), TRAINING_REWARD, notes=(note,))


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
    tail = [step for step in run.nonfinite.get(GRAD_NORM, ()) if good < step <= stop]
    return tail[0] if len(tail) >= COLLAPSE_STEPS else None
