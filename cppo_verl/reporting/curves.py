"""The paper's figures as panels, and the same for models that are not the paper's.

Validation is drawn as logged. Training metrics are drawn as means of blocks of steps (the caption says how many), for
seven methods that each jitter from step to step cannot be told apart. Several seeds are a line of their mean and a
band, in validation with a thin line each. For the paper's models the band is one standard error, and as in the tables
collapsed seeds are not in the mean; for others it is Student's t interval, and every seed counts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from cppo_verl import paper
from cppo_verl.reporting import metrics
from cppo_verl.reporting.ablations import TITLES, groups
from cppo_verl.reporting.intervals import t975
from cppo_verl.reporting.metrics import ALL, Metric
from cppo_verl.reporting.outcomes import grouped
from cppo_verl.reporting.plots import BOLD_WIDTH, Line, Panel, Plot, last_values
from cppo_verl.reporting.scores import ACCURACY, TRAINING_REWARD, Entry, kind_of, t_stop
from cppo_verl.reporting.template import data
from cppo_verl.reporting.text import NOT_LOGGED, capital

DRAWN_POINTS = 80
WARM_UP_SHARE = 0.1  # of T_stop
HOLE = 4  # times the usual distance of steps, beyond which a line breaks
WIDTH = 1.4
FIRST_FIGURE = 8  # of the paper's training diagnostics, a figure a model

Runs = Mapping[str, Sequence[Entry]]  # by method


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
    def lines(self) -> list[Line]:
        """Every line, once."""
        return list({line.name: line for panel in self.panels for line in panel.lines}.values())


def pictures(entries: Sequence[Entry], model: str) -> list[Picture]:
    """Every figure that the runs of a model have something for: the paper's in its order, or those of a comparison."""
    own = [entry for entry in entries if entry.label.model == model and entry.run is not None]
    named = {method: [entry for entry in own if entry.label.method == method] for method in paper.METHODS}
    papers = {method: runs for method, runs in named.items() if runs} if t_stop(model) is not None else {}
    runs = papers or grouped(own)
    made = [validation(runs, model), positions(runs, model)]
    if t_stop(model) is None:
        made[1:] = [of_metrics(runs, model, "training"), of_metrics(runs, model, "staleness"), made[1]]
    else:
        made += [ablations(own, model), *(of_metrics(runs, model, key) for key in ("warm-up", "training", "staleness"))]
    return [picture for picture in made if picture is not None]


def validation(runs: Runs, model: str) -> Picture | None:
    """Score by step: Figure 4, and Figure 1 (right) for its model."""
    kind, stop = kind_of(entry for entries in runs.values() for entry in entries), t_stop(model)
    title = "Validation score" if kind == ACCURACY else capital(kind)
    panel = _score_panel("score", title, runs, model, rings=True)
    if panel is None:
        return None
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
    found = groups(entries, model).items()
    made = [_score_panel(f"ablation-{key}", TITLES[key], members, model) for key, members in found]
    panels = tuple(replace(panel, legend=True) for panel in made if panel is not None)
    caption = (
        "Validation score as in the figure of the validation, not smoothed. A panel holds CPPO and the runs that "
        f"differ from it in the one respect that the panel is about. {_seeds_sentence(panels, model)}"
    )
    figure = Picture("ablations", model, "Figures 5 and 6", "Ablations", caption.strip(), panels, legend=False)
    return figure if panels else None


def of_metrics(runs: Runs, model: str, key: str) -> Picture | None:
    """A panel for each metric of the figure that a run logged: the first steps (Figure 7), or the whole training in
    means (Figures 8 to 11, one a model), or of asynchronous runs what age costs."""
    spec, models = data("figures.yaml")["of_metrics"][key], list(paper.settings())
    entries = [entry for each in runs.values() for entry in each if entry.run is not None]
    if key == "staleness" and not any(len(ALL[metrics.SPANNING].of(x.run.frame)) for x in entries if x.run):
        return None
    last = max((entry.score.last_step for entry in entries), default=1)
    end = max(1, round(WARM_UP_SHARE * (t_stop(model) or last)))
    width = 1 if key == "warm-up" else -(-max(1, last) // DRAWN_POINTS)
    names = spec["metrics"] + (spec.get("own_models", []) if t_stop(model) is None else [])
    panels: list[Panel] = []
    absent: list[str] = []
    for metric in (ALL[name] for name in names):
        lines = _lines(runs, model, partial(_values, metric, width, end if key == "warm-up" else np.inf))
        plot = Plot(tuple(lines), unit=metric.unit, label="seconds" * (metric.unit == "s"), log=metric.log, hole=HOLE)
        if lines:
            panels.append(_panel(f"{key}-{len(panels)}", metric.title, plot))
        else:
            absent.append(metric.label)
    smoothed = f"Each point is the mean of {width} steps." if width > 1 else "Every step as logged, not smoothed."
    number = FIRST_FIGURE + models.index(model) if model in models else 0
    figure = spec.get("figure", "").format(number=number) if number else ""
    missing = f"{capital(NOT_LOGGED)}: {', '.join(absent)}." if absent else ""
    said = [spec["caption"].format(end=end, smoothed=smoothed), _seeds_sentence(panels, model), missing]
    return Picture(key, model, figure, spec["title"], " ".join(filter(None, said)), tuple(panels)) if panels else None


def positions(runs: Runs, model: str) -> Picture | None:
    """Divergence along the response: Figure 2."""
    lines = _lines(runs, model, _by_position)
    caption = (
        "Mean divergence of the trained policy from the one that sampled, in eight equal parts of the response, from "
        "the logged bins, each the mean over all steps that logged it."
    )
    plot = Plot(tuple(replace(line, dots=True) for line in lines), x="position in the response", hole=None)
    figure = "" if t_stop(model) is None else "Figure 2"
    panel = _panel("positions", "Divergence along the response", plot)
    return Picture("positions", model, figure, "Position-conditioned deviation", caption, (panel,)) if lines else None


def block_means(values: pd.Series, width: int) -> pd.Series:
    """Means over blocks of ``width`` steps that start at step 1, at the middle of each block; as it is for width 1."""
    if width == 1 or values.empty:
        return values
    means = values.groupby((values.index.to_numpy() - 1) // width).mean()
    return means.set_axis(pd.Index(means.index.to_numpy() * width + (width + 1) / 2, name="step"))


def _values(metric: Metric, width: int, upto: float, entry: Entry) -> pd.Series:
    found = metric.of(entry.run.frame) if entry.run is not None else pd.Series(dtype=float)
    return block_means(found[(found.index > 0) & (found.index <= upto)], width)


def _by_position(entry: Entry) -> pd.Series:
    """Divergence by the middle of each bin (0..1); empty without any."""
    frame = entry.run.frame.reindex(columns=list(metrics.BY_POSITION)) if entry.run is not None else pd.DataFrame()
    means = frame.where(np.isfinite(frame)).mean()
    return means.set_axis((np.arange(len(means)) + 0.5) / metrics.POSITION_BINS).dropna()


def _score_panel(key: str, title: str, members: Runs, model: str, rings: bool = False) -> Panel | None:
    lines, stop = [], t_stop(model)
    kind = kind_of(entry for entries in members.values() for entry in entries)
    for place, (name, entries) in enumerate(members.items()):
        scored = [entry for entry in entries if len(entry.score.table) and entry.score.kind == kind]
        if not scored:
            continue
        counted = [entry for entry in scored if entry.score.collapsed_at is None or stop is None]
        fell = [(e.score.collapsed_at, e.score.curve) for e in scored if e.score.collapsed_at is not None]
        best = tuple((e.score.step, e.score.best["avg"]) for e in counted if e.score.step is not None) if rings else ()
        line = _line(name, place, [(entry.label.seed, entry.score.curve) for entry in counted or scored], model)
        seeds = tuple(entry.score.curve for entry in scored) if len(scored) > 1 else ()
        # a cross lies at the last validation before the fall, or at the first of all
        crosses = tuple((step, float(curve.iloc[max(0, (curve.index <= step).sum() - 1)])) for step, curve in fell)
        lines.append(replace(line, dots=len(line.values) <= 15, seeds=seeds, best=best, collapsed=crosses))
    label = "Avg@16, %" if stop else "%" * (kind == ACCURACY)
    plot = Plot(tuple(lines), label=label, hole=None, stop=stop)
    return _panel(key, title, plot) if lines else None


def _panel(key: str, title: str, plot: Plot) -> Panel:
    """A panel with its words: what it shows, and where each line ends."""
    panel, unit = Panel(key, title, "", (plot,), legend=False), f" ({plot.label})" if plot.label else ""
    words = f"{title}{unit} by {plot.x}, a line for each method. Last values: {last_values(panel)}."
    return replace(panel, words=words)


def _lines(runs: Runs, model: str, values: Callable[[Entry], pd.Series]) -> list[Line]:
    """A line a method that has values."""
    lines = []
    for place, (name, entries) in enumerate(runs.items()):
        found = [(entry.label.seed, x) for entry in entries if len(x := values(entry))]
        if found:
            lines.append(_line(name, place, found, model))
    return lines


def _line(name: str, place: int, values: Sequence[tuple[str, pd.Series]], model: str) -> Line:
    """The mean over (seed, values) where all have a value; of one's own models, runs of one seed count as one."""
    own, styles = t_stop(model) is None, data("figures.yaml")
    each = _seed_means(values) if own else [x for _, x in values]
    table = pd.concat(each, axis=1, join="inner")
    wide = t975(len(each) - 1) if len(each) > 1 and own else 1.0
    error = wide * table.sem(axis=1) if len(each) > 1 else None
    color, dashes = styles["methods"].get(name) or styles["variants"][place % len(styles["variants"])]
    width = BOLD_WIDTH if name == "CPPO" else WIDTH
    return Line(name, table.mean(axis=1), color, (0, dashes) if dashes else "-", width, error=error)


def _seed_means(values: Iterable[tuple[str, pd.Series]]) -> list[pd.Series]:
    """The mean of each seed's; one whose seed is unknown is a seed of its own."""
    found: dict[str, list[pd.Series]] = {}
    for number, (seed, each) in enumerate(values):
        found.setdefault(seed or f"unknown {number}", []).append(each)
    return [pd.concat(each, axis=1, join="inner").mean(axis=1) for each in found.values()]


def _seeds_sentence(panels: Sequence[Panel], model: str) -> str:
    lines = [line for panel in panels for line in panel.lines]
    if not any(line.error is not None or line.seeds for line in lines):
        return ""
    if t_stop(model) is None:
        return "With several seeds, the line is their mean, the band its 95% interval (Student's t)."
    whose = "the mean of those that did not collapse" if any(line.seeds for line in lines) else "their mean"
    return f"With several seeds, the line is {whose}, the band one standard error."
