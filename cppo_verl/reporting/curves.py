"""The paper's figures as panels, and the same for models that are not the paper's; their words are in
``assets/figures.yaml``.

Validation is drawn as logged. Training metrics are drawn as means of blocks of steps (the caption says how many), for
seven methods that each jitter from step to step cannot be told apart. Several seeds are a line of their mean and a
band, in validation with a thin line each. For the paper's models the band is one standard error, and as in the tables
collapsed seeds are not in the mean; for others it is Student's t interval, and every seed counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cppo_verl import paper
from cppo_verl.estimates import t975
from cppo_verl.reporting import metrics
from cppo_verl.reporting.comparison import KNOBS, grouped
from cppo_verl.reporting.metrics import ALL, Metric
from cppo_verl.reporting.panels import finite_columns
from cppo_verl.reporting.plots import Line, Panel, Plot
from cppo_verl.reporting.scores import ACCURACY, TRAINING_REWARD, Entry, kind_of, t_stop
from cppo_verl.reporting.template import data
from cppo_verl.reporting.text import NOT_LOGGED, capital, number

DRAWN_POINTS = 80
WARM_UP_SHARE = 0.1  # of T_stop
WIDTH, BOLD_WIDTH = 1.4, 2.0  # of the line to look at
FIRST_FIGURE = 8  # of the paper's training diagnostics, a figure a model

Runs = Mapping[str, Sequence[Entry]]  # by method
Panels = tuple[list[Panel], dict[str, object]]  # with what their caption says of them


@dataclass(frozen=True)
class Picture:
    """A figure for one model, with the paper's ``figure`` in its heading; the panels share one ``legend``, or each has
    its own."""

    key: str
    model: str
    heading: str
    caption: str
    panels: tuple[Panel, ...]
    legend: bool = True

    @property
    def lines(self) -> list[Line]:
        return list({line.name: line for panel in self.panels for line in panel.lines}.values())


def pictures(entries: Sequence[Entry], model: str) -> list[Picture]:
    """Every figure that the runs of a model have something for: the paper's in its order, or those of a comparison."""
    own = [entry for entry in entries if entry.label.model == model and len(entry.frame)]
    named = {method: [entry for entry in own if entry.label.method == method] for method in paper.METHODS}
    papers = {method: runs for method, runs in named.items() if runs} if t_stop(model) else {}
    runs = papers or grouped(own)
    made = {"validation": _validation(runs, model)}
    made |= {key: _of_metrics(runs, model, key) for key in ("training", "staleness")}
    made["positions"] = _positions(runs, model)
    if not t_stop(model):
        return [_picture(key, model, *found) for key, found in made.items() if found[0]]
    made |= {"ablations": _ablations(own, model), "warm-up": _of_metrics(runs, model, "warm-up")}
    return [_picture(key, model, *made[key]) for key in data("figures.yaml")["figures"] if made[key][0]]


def _picture(key: str, model: str, panels: Sequence[Panel], words: Mapping[str, object]) -> Picture:
    spec, models = data("figures.yaml")["figures"][key], list(paper.settings())
    heading = spec["title"].format(**words)
    if "figure" in spec and model in models:
        heading += f" (as in the paper's {spec['figure'].format(number=FIRST_FIGURE + models.index(model))})"
    seeds = data("figures.yaml")["seeds"]["the paper's" if model in models else "own"]
    caption = " ".join(spec["caption"].format(seeds=seeds, **words).split())
    return Picture(key, model, heading, caption, tuple(panels), spec.get("legend", True))


def _validation(runs: Runs, model: str) -> Panels:
    kind, stop = kind_of(entry for entries in runs.values() for entry in entries), t_stop(model)
    panels = _of_scores("score", "Validation score" if kind == ACCURACY else capital(kind), runs, model, rings=True)
    title, what = "Validation", "Unweighted mean over the validation sets at every validated step, not smoothed."
    if kind == TRAINING_REWARD:
        title, what = "Training reward", "Means of a twentieth of the run."
    up_to = f" up to T_stop = {stop} (vertical line)" if stop else ""
    return panels, {"title": title, "what": what, "up_to": up_to}


def _ablations(entries: Sequence[Entry], model: str) -> Panels:
    """CPPO beside the runs that are not of Table 1, a panel for each knob that is another there, and one for rules; a
    run that differs in several knobs is in the panel of the first."""
    cppo = [entry for entry in entries if entry.label.method == "CPPO"]
    usual = cppo[0].settings if cppo else {}
    variants: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.label.method not in paper.METHODS:
            known = [key for key in ("loss_mode", *KNOBS) if key in usual and key in entry.settings]
            changed = next((key for key in known if entry.settings[key] != usual[key]), "loss_mode")
            variants.setdefault(changed, []).append(entry)
    panels: list[Panel] = []
    for key, runs in variants.items():
        title = f"Another {key}".replace("loss_mode", "rule")
        panels += _of_scores(f"ablation-{key}", title, grouped([*cppo, *runs]), model)
    return panels, {}


def _of_metrics(runs: Runs, model: str, key: str) -> Panels:
    """A panel for each metric of the figure that a run logged: the first steps (Figure 7), or the whole training in
    means (Figures 8 to 11, one a model), or of asynchronous runs what age costs."""
    spec = data("figures.yaml")["figures"][key]
    entries = [entry for each in runs.values() for entry in each]
    if key == "staleness" and all(ALL[metrics.SPANNING].of(entry.frame).empty for entry in entries):
        return [], {}
    last = max((entry.score.last_step for entry in entries), default=1)
    end = max(1, round(WARM_UP_SHARE * (t_stop(model) or last)))
    width, upto = (1, end) if key == "warm-up" else (-(-max(1, last) // DRAWN_POINTS), last)

    def trained(entry: Entry, metric: Metric) -> pd.Series:
        return block_means(metric.of(entry.frame).loc[1:upto], width)

    panels: list[Panel] = []
    absent: list[str] = []
    for metric in (ALL[name] for name in spec["metrics"] + ([] if t_stop(model) else spec.get("own_models", []))):
        lines = tuple(_lines(runs, model, partial(trained, metric=metric)))
        if lines:
            plot = Plot(lines, unit=metric.unit, label="seconds" * (metric.unit == "s"), log=metric.log)
            panels.append(_panel(f"{key}-{len(panels)}", capital(metric.label), plot))
        else:
            absent.append(metric.label)
    smoothed = f"Each point is the mean of {width} steps." if width > 1 else "Every step as logged, not smoothed."
    missing = f"{capital(NOT_LOGGED)}: {', '.join(absent)}." if absent else ""
    return panels, {"end": end, "smoothed": smoothed, "missing": missing}


def block_means(values: pd.Series, width: int) -> pd.Series:
    """Means over blocks of ``width`` steps that start at step 1, at the middle of each block; as it is for width 1."""
    if width == 1 or values.empty:
        return values
    means = values.groupby((values.index.to_numpy() - 1) // width).mean()
    return means.set_axis(pd.Index(means.index.to_numpy() * width + (width + 1) / 2, name="step"))


def _positions(runs: Runs, model: str) -> Panels:

    def by_position(entry: Entry) -> pd.Series:
        means = finite_columns(entry.frame, metrics.BY_POSITION).mean()
        return means.set_axis((np.arange(len(means)) + 0.5) / metrics.POSITION_BINS).dropna()

    plot = Plot(tuple(_lines(runs, model, by_position)), x="position in the response")
    return [_panel("positions", "Divergence along the response", plot)] if plot.lines else [], {}


def _of_scores(key: str, title: str, members: Runs, model: str, rings: bool = False) -> list[Panel]:
    """A panel of the runs' scores, none where no run has one."""
    lines, stop = [], t_stop(model)
    kind = kind_of(entry for entries in members.values() for entry in entries)
    for place, (name, entries) in enumerate(members.items()):
        scored = [entry for entry in entries if len(entry.score.table) and entry.score.kind == kind]
        if not scored:
            continue
        counted = [entry for entry in scored if entry.score.collapsed_at is None or stop is None]
        best = tuple((e.score.step, e.score.best["avg"]) for e in counted if e.score.step is not None) if rings else ()
        seeds = tuple(entry.score.curve for entry in scored) if len(scored) > 1 else ()
        line = _line(name, place, [(entry.label.seed, entry.score.curve) for entry in counted or scored], model)
        lines.append(replace(line, seeds=seeds, best=best))
    label = "Avg@16, %" if stop else "%" * (kind == ACCURACY)
    return [_panel(key, title, Plot(tuple(lines), label=label, stop=stop))] if lines else []


def _panel(key: str, title: str, plot: Plot) -> Panel:
    ends = [f"{x.name} {number(float(x.values.iloc[-1]), plot.unit)}" for x in plot.lines if len(x.values)]
    unit = f" ({plot.label})" if plot.label else ""
    words = f"{title}{unit} by {plot.x}, a line for each method. Last values: {'; '.join(ends)}."
    return Panel(key, title, "", (plot,), words)


def _lines(runs: Runs, model: str, values: Callable[[Entry], pd.Series]) -> list[Line]:
    lines = []
    for place, (name, entries) in enumerate(runs.items()):
        found = [(entry.label.seed, x) for entry in entries if len(x := values(entry))]
        if found:
            lines.append(_line(name, place, found, model))
    return lines


def _line(name: str, place: int, values: Sequence[tuple[str, pd.Series]], model: str) -> Line:
    """The mean over (seed, values) where all have a value; of one's own models, runs of one seed count as one."""
    own, styles = t_stop(model) is None, data("figures.yaml")
    by_seed: dict[Any, list[pd.Series]] = {}
    for run, (seed, each) in enumerate(values):
        by_seed.setdefault(seed if own and seed else run, []).append(each)
    seeds = [pd.concat(each, axis=1, join="inner").mean(axis=1) for each in by_seed.values()]
    table = pd.concat(seeds, axis=1, join="inner")
    wide = t975(len(seeds) - 1) if len(seeds) > 1 and own else 1.0
    error = wide * table.sem(axis=1) if len(seeds) > 1 else None
    color, dashes = styles["methods"].get(name) or styles["variants"][place % len(styles["variants"])]
    width = BOLD_WIDTH if name == "CPPO" else WIDTH
    return Line(name, table.mean(axis=1), color, (0, dashes) if dashes else "-", width, error=error)
