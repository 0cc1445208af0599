"""The paper's figures as data, and the same for models that are not the paper's: pictures of panels of lines.

Validation is drawn as logged. Training metrics are drawn as means of blocks of steps (the caption says how many), for
seven methods that each jitter from step to step cannot be told apart. Several seeds are a line of their mean and a
band, in validation with a thin line each. For the paper's models the band is one standard error, and as in the tables
collapsed seeds are not in the mean; for others it is Student's t interval, and every seed counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting import names
from cppo_verl.reporting.ablations import groups
from cppo_verl.reporting.intervals import t975
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.outcomes import by_seed, grouped
from cppo_verl.reporting.rollouts import Dump
from cppo_verl.reporting.scores import ACCURACY, TRAINING_REWARD, Entry, kind_of, t_stop
from cppo_verl.reporting.summary import NOT_LOGGED, first_logged, plain, series

DRAWN_POINTS = 80
WARM_UP_SHARE = 0.1  # of T_stop

_FIGURES = ("Figure 8", "Figure 9", "Figure 10", "Figure 11")  # the paper's training diagnostics, a figure a model

Dash = Literal["solid"] | tuple[float, Sequence[float]]

METHOD_STYLE: dict[str, tuple[str, Dash]] = {  # colour, dashes
    "GRPO": ("#6b7280", (0, (1, 1.2))),
    "MinPRO": ("#7c3aed", (0, (6, 1.5, 1, 1.5))),
    "CISPO": ("#0e7490", (0, (3, 1.2))),
    "DPPO": ("#1d4ed8", (0, (6, 1.5))),
    "TRM-Max": ("#a16207", (0, (2, 1, 1, 1))),
    "TRM-Avg": ("#15803d", (0, (9, 1.5, 2, 1.5))),
    "CPPO": ("#c2410c", "solid"),
}
_VARIANT_STYLE: tuple[tuple[str, Dash], ...] = (
    ("#be185d", (0, (5, 1.2))),
    ("#0369a1", (0, (1, 1.2))),
    ("#4d7c0f", (0, (6, 1.5, 1, 1.5))),
    ("#6d28d9", (0, (3, 1, 1, 1, 1, 1))),
    ("#475569", (0, (2, 1))),
    ("#b45309", (0, (9, 2))),
)


@dataclass(frozen=True)
class Style:
    """Colour, dashes (matplotlib's), and whether the line is the one to look at."""

    color: str
    dash: Dash
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """``mean`` by x, half the width of its band (``error``, empty for one seed), each seed's own values, and marks."""

    name: str
    style: Style
    mean: pd.Series
    error: pd.Series
    seeds: tuple[pd.Series, ...] = ()
    best: tuple[tuple[int, float], ...] = ()
    collapsed: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Panel:
    """Lines on one pair of axes; ``x`` is ``step`` or ``position``, ``stop`` a step to mark with a vertical line."""

    key: str
    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    log: bool = False
    dots: bool = False
    x: str = "step"
    stop: int | None = None

    def words(self) -> str:
        """The panel for those who do not see it: what it shows, and where each line ends."""
        ends = [f"{line.name} {plain(float(line.mean.iloc[-1]))}" for line in self.lines if len(line.mean)]
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title}{unit} by {self.x}, a line for each method. Last values: {'; '.join(ends)}."


@dataclass(frozen=True)
class Picture:
    """A figure for one model, like the paper's ``figure`` (empty for a model that is not the paper's); the panels share
    one ``legend``, or each has its own."""

    key: str
    model: str
    figure: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: bool = True

    @property
    def heading(self) -> str:
        return f"{self.title} (as in the paper's {self.figure})" if self.figure else self.title

    @property
    def styles(self) -> list[tuple[str, Style]]:
        """(name, style) of every line, once."""
        return list({line.name: line.style for panel in self.panels for line in panel.lines}.items())


def pictures(entries: Sequence[Entry], model: str, dumps: Mapping[str, Dump]) -> list[Picture]:
    """Every figure that the runs of a model have something for: the paper's in its order, or those of a comparison.

    Args:
        dumps: path of a run -> what its dumped rollouts say.
    """
    own = [entry for entry in entries if entry.label.model == model and entry.run is not None]
    made: tuple[Picture | None, ...]
    if t_stop(model) is None:
        runs = grouped(own)
        made = (
            validation(runs, model),
            diagnostics(runs, model),
            staleness(runs, model),
            positions(runs, model, dumps),
        )
    else:
        main = by_method(own)
        made = (
            validation(main, model),
            positions(main, model, dumps),
            ablations(own, model),
            warm_up(main, model),
            diagnostics(main, model),
            staleness(main, model),
        )
    return [picture for picture in made if picture is not None]


def by_method(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The runs by method, the paper's in its order; other methods only where a model has none of the paper's."""
    order = {method: [entry for entry in entries if entry.label.method == method] for method in paper.METHODS}
    known = {method: runs for method, runs in order.items() if runs}
    return known or grouped(entries)


def validation(runs: Mapping[str, Sequence[Entry]], model: str) -> Picture | None:
    """Score by step: Figure 4, and Figure 1 (right) for its model."""
    kind = kind_of(entry for entries in runs.values() for entry in entries)
    title = "Validation score" if kind == ACCURACY else kind.capitalize()
    panel = _score_panel("score", title, list(runs.items()), model, rings=True)
    if panel is None:
        return None
    stop = t_stop(model)
    up_to = f" up to T_stop = {stop} (vertical line)" if stop is not None else ""
    what = "Unweighted mean over the validation sets at every validated step, not smoothed."
    caption = (
        f"{'Means of a twentieth of the run.' if kind == TRAINING_REWARD else what} A ring marks a run's best "
        f"step{up_to}, the number in the tables; a cross marks where a run collapsed. {_seeds_sentence([panel], model)}"
    )
    figure = "" if stop is None else "Figures 1 (right) and 4"
    heading = "Training reward" if kind == TRAINING_REWARD else "Validation"
    return Picture("validation", model, figure, heading, caption.strip(), (panel,))


def ablations(entries: Sequence[Entry], model: str) -> Picture | None:
    """Validation curves of variants beside CPPO: Figures 5 and 6."""
    panels = []
    for group in groups(entries, model):
        panel = _score_panel(f"ablation-{group.key}", group.title, list(group.members), model)
        if panel is not None:
            panels.append(panel)
    if not panels:
        return None
    caption = (
        "Validation score as in the figure of the validation, not smoothed. A panel holds CPPO and the runs that "
        f"differ from it in the one respect that the panel is about. {_seeds_sentence(panels, model)}"
    )
    return Picture("ablations", model, "Figures 5 and 6", "Ablations", caption.strip(), tuple(panels), legend=False)


def warm_up(runs: Mapping[str, Sequence[Entry]], model: str) -> Picture | None:
    """The first steps, every one of them: Figure 7."""
    last = _last_step(runs)
    end = max(1, round(WARM_UP_SHARE * (t_stop(model) or last)))
    panels = [_metric_panel("warm-up", metric, runs, model, 1, upto=end) for metric in _WARM_UP]
    drawn = [panel for panel in panels if panel is not None]
    caption = f"Steps 1 to {end}, the first tenth, every step as logged, not smoothed."
    return _of_metrics("warm-up", model, "Figure 7", "Warm-up diagnostics", caption, drawn, _WARM_UP)


def diagnostics(runs: Mapping[str, Sequence[Entry]], model: str) -> Picture | None:
    """The whole training: Figures 8 to 11, one a model. Of other models the time a step, too."""
    models = list(paper.settings())
    asked = _TRAINING if model in models else (*_TRAINING, _TIME)
    width = -(-max(1, _last_step(runs)) // DRAWN_POINTS)
    panels = [_metric_panel("training", metric, runs, model, width) for metric in asked]
    drawn = [panel for panel in panels if panel is not None]
    smoothed = f"Each point is the mean of {width} steps." if width > 1 else "Every step as logged, not smoothed."
    caption = f"{smoothed} The masked share of GRPO and CISPO is what their losses report as clipped."
    figure = _FIGURES[models.index(model)] if model in models else ""
    return _of_metrics("training", model, figure, "Training diagnostics", caption, drawn, asked)


def staleness(runs: Mapping[str, Sequence[Entry]], model: str) -> Picture | None:
    """How old responses were and what that cost; None where no run is asynchronous."""
    some = [entry.run for entries in runs.values() for entry in entries if entry.run is not None]
    if not any(len(series(run, names.SPANNING)) for run in some):
        return None
    width = -(-max(1, _last_step(runs)) // DRAWN_POINTS)
    panels = [_metric_panel("staleness", metric, runs, model, width) for metric in _STALENESS]
    drawn = [panel for panel in panels if panel is not None]
    caption = "What responses of older weights do: docs/staleness.md has each metric."
    return _of_metrics("staleness", model, "", "Stale data", caption, drawn, _STALENESS)


def positions(runs: Mapping[str, Sequence[Entry]], model: str, dumps: Mapping[str, Dump]) -> Picture | None:
    """Divergence along the response: Figure 2."""
    lines, sources = [], {}
    for i, (name, entries) in enumerate(runs.items()):
        found = [(entry, _by_position(entry, dumps)) for entry in entries]
        values = [(entry.label.seed, x) for entry, x in found if x is not None]
        if values:
            lines.append(_line(name, _style(name, i), values, model))
            sources[name] = "dump" if all(entry.place in dumps for entry, x in found if x is not None) else "bins"
    if not lines:
        return None
    dumped = [name for name, source in sources.items() if source == "dump"]
    logged = [name for name, source in sources.items() if source == "bins"]
    said = [f"dumped rollouts ({', '.join(dumped)})"] if dumped else []
    said += [f"the logged bins, each the mean over all steps that logged it ({', '.join(logged)})"] if logged else []
    caption = (
        "Mean divergence of the trained policy from the one that sampled, in eight equal parts of the response, from "
        f"{' and '.join(said)}."
    )
    panel = Panel("positions", "Divergence along the response", tuple(lines), dots=True, x="position")
    figure = "" if t_stop(model) is None else "Figure 2"
    return Picture("positions", model, figure, "Position-conditioned deviation", caption, (panel,))


@dataclass(frozen=True)
class Metric:
    """A training metric to draw: the first of ``candidates`` that a run logged."""

    key: str
    title: str
    candidates: tuple[str, ...]
    unit: str = ""
    log: bool = False
    scale: float = 1.0


_REWARD = Metric("reward", "Training reward", names.REWARD)
_LENGTH = Metric("length", "Response length", (names.LENGTH,), "tokens")
_ENTROPY = Metric("entropy", "Entropy", names.ENTROPY)
_MASKED = Metric("masked", "Masked share", names.MASKED_OR_CLIPPED, "% of tokens", scale=100)
_BY_BUDGET = Metric("budget-masked", "Masked by the prefix budget", (names.MASKED_BY_BUDGET,), "% of tokens", scale=100)
_DIVERGENCE = Metric("divergence", "Mean divergence", (names.DIVERGENCE_MEAN,))
_TAIL = Metric("p99", "99th percentile of the divergence", (names.DIVERGENCE_P99,))
_GRADIENT = Metric("gradient", "Gradient norm", (names.GRAD_NORM,), log=True)
_AVERAGE = Metric("average", "Prefix average S/W", (names.PREFIX_AVERAGE,))
_GRANTED = Metric("granted", "Effective delta_b", (names.EFFECTIVE_BUDGET,))
_ZERO = Metric("zero", "Responses without reward variance", (names.ZERO_VARIANCE,), "%", scale=100)

_TIME = Metric("time", "Time a step", (names.TIME_STEP,), "seconds")

_BEHIND = Metric("behind", "Age of the responses, mean", (names.BEHIND_MEAN,), "versions behind")
_SAMPLE = Metric("sample", "Effective sample of the tokens", (names.SAMPLE_SIZE_TOKENS,), "%", scale=100)
_SPENT = Metric("spent", "Divergence before any update", (names.FIRST_UPDATE,), log=True)
_SCALE = Metric("scale", "Scale of the thresholds", (names.SCALE,), log=True)

_STALENESS = (_BEHIND, _SAMPLE, _SPENT, _SCALE)
_WARM_UP = (_REWARD, _MASKED, _DIVERGENCE, _AVERAGE, _GRANTED, _GRADIENT)
_TRAINING = (_REWARD, _LENGTH, _ENTROPY, _MASKED, _BY_BUDGET, _DIVERGENCE, _TAIL, _GRADIENT, _ZERO)


def block_means(values: pd.Series, width: int) -> pd.Series:
    """Means over blocks of ``width`` steps that start at step 1, at the middle of each block; as it is for width 1."""
    if width == 1 or values.empty:
        return values
    block = (values.index.to_numpy() - 1) // width
    means = values.groupby(block).mean()
    means.index = pd.Index(means.index.to_numpy() * width + (width + 1) / 2, name="step")
    return means


def _of_metrics(
    key: str, model: str, figure: str, title: str, caption: str, drawn: Sequence[Panel], asked: Sequence[Metric]
) -> Picture | None:
    if not drawn:
        return None
    shown = {panel.key for panel in drawn}
    absent = [metric.title.lower() for metric in asked if f"{key}-{metric.key}" not in shown]
    words = [
        caption,
        _seeds_sentence(drawn, model),
        f"{NOT_LOGGED.capitalize()}: {', '.join(absent)}." if absent else "",
    ]
    return Picture(key, model, figure, title, " ".join(filter(None, words)), tuple(drawn))


def _metric_panel(
    prefix: str, metric: Metric, runs: Mapping[str, Sequence[Entry]], model: str, width: int, upto: int | None = None
) -> Panel | None:
    lines = []
    for i, (name, entries) in enumerate(runs.items()):
        found = [(e.label.seed, _metric_of(e.run, metric, width, upto)) for e in entries if e.run is not None]
        values = [(seed, x) for seed, x in found if len(x)]
        if values:
            lines.append(_line(name, _style(name, i), values, model))
    if not lines:
        return None
    return Panel(f"{prefix}-{metric.key}", metric.title, tuple(lines), metric.unit, metric.log)


def _metric_of(run: Run, metric: Metric, width: int, upto: int | None) -> pd.Series:
    name = first_logged(run, metric.candidates)
    if name is None:
        return pd.Series(dtype=float)
    values = series(run, name) * metric.scale
    values = values[values.index > 0] if upto is None else values[(values.index > 0) & (values.index <= upto)]
    return block_means(values, width)


def _score_panel(
    key: str, title: str, members: Sequence[tuple[str, Sequence[Entry]]], model: str, rings: bool = False
) -> Panel | None:
    lines, kind = [], kind_of(entry for _, entries in members for entry in entries)
    for i, (name, entries) in enumerate(members):
        scored = [entry for entry in entries if len(entry.score.curve) and entry.score.kind == kind]
        if not scored:
            continue
        scores = [entry.score for entry in scored]
        counted = [e for e in scored if e.score.collapsed_at is None or t_stop(model) is None]
        whole = [entry.score for entry in counted]
        fell = tuple((s.collapsed_at, _at(s.curve, s.collapsed_at)) for s in scores if s.collapsed_at is not None)
        best = tuple((s.step, s.mean) for s in whole if s.step is not None and s.mean is not None) if rings else ()
        values = [(entry.label.seed, entry.score.curve) for entry in counted or scored]
        line = _line(name, _style(name, i), values, model)
        seeds = tuple(s.curve for s in scores) if len(scores) > 1 else ()
        lines.append(replace(line, seeds=seeds, best=best, collapsed=fell))
    if not lines:
        return None
    unit = "Avg@16, %" if t_stop(model) else "%" * (kind == ACCURACY)
    return Panel(key, title, tuple(lines), unit, dots=True, stop=t_stop(model))


def _line(name: str, style: Style, values: Sequence[tuple[str, pd.Series]], model: str) -> Line:
    """The mean over (seed, values) where all have a value; of one's own models, runs of one seed count as one."""
    own = t_stop(model) is None
    each = _seed_means(values) if own else [x for _, x in values]
    table = pd.concat(each, axis=1, join="inner")
    wide = t975(len(each) - 1) if len(each) > 1 and own else 1.0
    error = wide * table.sem(axis=1) if len(each) > 1 else pd.Series(dtype=float)
    return Line(name, style, table.mean(axis=1), error)


def _seed_means(values: Sequence[tuple[str, pd.Series]]) -> list[pd.Series]:
    return [pd.concat(found, axis=1, join="inner").mean(axis=1) for found in by_seed(values).values()]


def _style(name: str, place: int) -> Style:
    if name in METHOD_STYLE:
        return Style(*METHOD_STYLE[name], bold=name == "CPPO")
    return Style(*_VARIANT_STYLE[place % len(_VARIANT_STYLE)])


def _by_position(entry: Entry, dumps: Mapping[str, Dump]) -> pd.Series | None:
    """Divergence by the middle of each bin (0..1); None without any."""
    if entry.place in dumps:
        values = dumps[entry.place].by_position
    else:
        frame = entry.run.frame.reindex(columns=list(names.BY_POSITION)) if entry.run is not None else pd.DataFrame()
        values = frame.where(np.isfinite(frame)).mean().to_numpy() if len(frame.columns) else np.array([np.nan])
    if not np.isfinite(values).any():
        return None
    return pd.Series(values, index=(np.arange(len(values)) + 0.5) / len(values)).dropna()


def _at(curve: pd.Series, step: int) -> float:
    """The curve's value at the validated step at or before ``step``, its first before any."""
    before = curve[curve.index <= step]
    return float(before.iloc[-1] if len(before) else curve.iloc[0])


def _last_step(runs: Mapping[str, Sequence[Entry]]) -> int:
    return max((entry.score.last_step for entries in runs.values() for entry in entries), default=0)


def _seeds_sentence(panels: Sequence[Panel], model: str) -> str:
    lines = [line for panel in panels for line in panel.lines]
    if not any(len(line.error) for line in lines) and not any(line.seeds for line in lines):
        return ""
    if t_stop(model) is None:
        return "With several seeds, the line is their mean, the band its 95% interval (Student's t)."
    whose = "the mean of those that did not collapse" if any(line.seeds for line in lines) else "their mean"
    return f"With several seeds, the line is {whose}, the band one standard error."
