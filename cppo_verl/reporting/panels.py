"""The panels of a run, as data for ``plots``, every logged step as it is; what most of them hold is in
``assets/panels.yaml``."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from cppo_verl.reporting import metrics
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.metrics import ALL, series
from cppo_verl.reporting.plots import PALETTE, Line, Panel, Plot
from cppo_verl.reporting.summary import NumberRow, validation
from cppo_verl.reporting.template import data
from cppo_verl.reporting.text import NOT_LOGGED, capital

OTHER = "timing_s/other"  # of a step's time, what is neither generation nor update


def panels_of(run: Run, rows: Sequence[NumberRow]) -> list[Panel]:
    """The six panels of every run; those of old responses and of steered thresholds where a run logged such things. A
    panel's words are from the run's numbers (``rows``)."""
    frame = run.frame
    own = {"learning": _learning(frame), "positions": _positions(frame), "staleness": _staleness(frame)}
    left_out = {"versions", "staleness"} if series(frame, metrics.SPANNING).empty else set()
    if not (series(frame, metrics.SCALE) != 1).any():
        left_out.add("scale")
    span = (float(frame.index[0]), float(frame.index[-1]))
    panels = []
    for key, spec in data("panels.yaml").items():
        if key in left_out:
            continue
        plots = own.get(key) or tuple(_plot(frame, plot) for plot in spec["plots"])
        shown = [row for row in rows if row.panel == key]
        said = [f"{x.label} {x.cells[0]} to {x.cells[1]}" if x.cells else f"{x.label} {NOT_LOGGED}" for x in shown]
        absent = ", ".join(row.metric for row in shown if not row.cells)
        caption = spec["caption"] if any(row.cells for row in shown) else ""
        words = f"{spec['title']}, first to last value: {'; '.join(said)}."
        missing = f"{capital(NOT_LOGGED)}: {absent}." if absent else ""
        panels.append(Panel(key, spec["title"], caption, plots, words, missing, span=span))
    return panels


def _plot(frame: pd.DataFrame, spec: Mapping[str, Any]) -> Plot:

    def line(name: str, color: str, dash: str = "-") -> Line:
        if name == OTHER:
            return Line("other", other_time(frame), PALETTE[color])
        return Line(ALL[name].short or ALL[name].label, series(frame, name), PALETTE[color], dash)

    lines = tuple(line(name, *style) for name, style in spec.get("lines", {}).items())
    areas = tuple(line(name, *style) for name, style in spec.get("areas", {}).items())
    made = {key: spec[key] for key in ("unit", "label", "log", "what") if key in spec}
    return Plot(lines, areas, line(spec["outline"], "ink") if areas else None, **made)


def _learning(frame: pd.DataFrame) -> tuple[Plot, Plot]:
    found = validation(frame)
    top = Plot(what="validation accuracy")
    if found is not None:
        several = len(found.by_source) > 1
        each = zip(found.by_source.items(), cycle(("-", "--", ":", "-.")), strict=False)
        lines = [Line(name, values, PALETTE["stone"], dash, 1.0) for (name, values), dash in each] if several else []
        name = f"validation {found.kind}" + (f", mean of {len(found.by_source)}" if several else "")
        lines.append(Line(name, found.mean, PALETTE["orange"]))
        top = Plot(tuple(lines), unit=found.unit, from_zero=False)
    below = Line(metrics.REWARD.label, metrics.REWARD.of(frame), PALETTE["blue"])
    return top, Plot((below,), from_zero=False, what="training reward")


def _positions(frame: pd.DataFrame) -> tuple[Plot]:
    centres = (np.arange(metrics.POSITION_BINS) + 0.5) / metrics.POSITION_BINS
    lines = [
        Line(label, pd.Series(means, index=centres).dropna(), PALETTE[color])
        for (label, means), color in zip(thirds(frame), ("late", "middle", "early"), strict=False)
    ]
    what = "divergence by position"
    return (Plot(tuple(lines), label="mean divergence", x="position in the response", what=what),)


def thirds(frame: pd.DataFrame) -> list[tuple[str, np.ndarray]]:
    """(steps, mean by position bin) of the last, middle and first third of the logged steps, late first; NaN for a bin
    that a third never logged."""
    bins = finite_columns(frame, metrics.BY_POSITION).dropna(how="all")
    parts = []
    for places in np.array_split(np.arange(len(bins)), 3):
        if len(places):
            first, last = bins.index[places[0]], bins.index[places[-1]]
            label = f"step {first}" if first == last else f"steps {first}–{last}"
            parts.append((label, bins.iloc[places].mean().to_numpy()))
    return parts[::-1]


def finite_columns(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """These columns, NaN where a value is infinite or was not logged."""
    found = frame.reindex(columns=list(names))
    return found.where(np.isfinite(found))


def other_time(frame: pd.DataFrame) -> pd.Series:
    """Step time that is neither generation nor update, at the steps that logged all three; never below 0."""
    times = finite_columns(frame, metrics.TIMES).dropna()
    return (2 * times[metrics.TIME_STEP] - times.sum(axis=1)).clip(lower=0.0)


def _staleness(frame: pd.DataFrame) -> tuple[Plot, Plot]:
    """Divergence and masked share by versions behind, means over the whole run; the last holds all that is older."""

    def line(label: str, names: Sequence[str], color: str, dash: str = "-") -> Line:
        means = finite_columns(frame, names).mean().reset_index(drop=True).dropna()
        return Line(label, means, PALETTE[color], dash)

    before = line("before any update", metrics.FIRST_BY_STALENESS, "orange", "--")
    lines = (before, line("over all updates", metrics.DIVERGENCE_BY_STALENESS, "blue"))
    masked = line("masked share", metrics.MASKED_BY_STALENESS, "teal")
    above = Plot(lines, label="mean divergence", x="versions behind")
    return above, Plot((masked,), unit="%", x="versions behind")
