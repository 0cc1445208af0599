"""What a panel holds, as data, and the one way in which it is drawn: of one run or of many, for a page or a picture.

A line breaks where steps are missing; what was not logged is not drawn, never as zero.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cppo_verl.reporting.metrics import STALENESS_BINS
from cppo_verl.reporting.text import NOT_LOGGED, short_exponent

# The page swaps each of these for a CSS variable of the same name, so that one drawing serves light and dark.
PALETTE = {"ink": "#22303c", "soft": "#5d6975", "rule": "#d5dbe1", "blue": "#2b6cb0", "orange": "#c05f1a",
           "teal": "#2f8f83", "stone": "#8d98a3", "early": "#74a0d2", "middle": "#3a76b8",
           "late": "#123a66"}  # fmt: skip
LEGEND_WIDTH = 54  # letters that fit above the axes of the narrowest panel
DOTTED_POINTS = 15  # more are drawn as a line alone
HOLE = 4  # times the usual distance of steps, beyond which a line breaks
TICKS = {  # by x, where they are not numbers of steps
    "position in the response": ((0, 0.25, 0.5, 0.75, 1), ("start", "25%", "50%", "75%", "end")),
    "versions behind": (range(STALENESS_BINS), [*map(str, range(STALENESS_BINS - 1)), f"{STALENESS_BINS - 1} or more"]),
}


@dataclass(frozen=True)
class Line:
    """``values`` by x, how they are drawn (``dash`` is matplotlib's), half the width of their band (``error``), each
    seed's own, and the ``best`` of each as (step, value) to mark."""

    name: str
    values: pd.Series
    color: str
    dash: Any = "-"
    width: float = 1.5
    error: pd.Series | None = None
    seeds: tuple[pd.Series, ...] = ()
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Plot:
    """One pair of axes: lines, areas stacked on each other (with ``outline``, what they add up to); ``what`` is named
    where there is nothing to draw. ``unit`` is ``%`` for fractions, ``x`` is ``step`` or a key of ``TICKS``, ``stop`` a
    step to mark."""

    lines: tuple[Line, ...] = ()
    areas: tuple[Line, ...] = ()
    outline: Line | None = None
    unit: str = ""
    label: str = ""
    log: bool = False
    x: str = "step"
    from_zero: bool = True
    stop: int | None = None
    what: str = ""

    @property
    def nothing(self) -> str:
        """Why there is nothing to draw; empty where there is something."""
        every = [line.values for line in (*self.lines, *self.areas, *([self.outline] if self.outline else []))]
        if not any(map(len, every)):
            return NOT_LOGGED
        return "0 at every step" if (self.areas or self.log) and not any((x > 0).any() for x in every) else ""


@dataclass(frozen=True)
class Panel:
    """Plots on one x axis under a title; ``words`` say it to those who do not see it, ``missing`` what is not there,
    ``span`` are the first and last step that the x axis shows (None fits it to the lines)."""

    key: str
    title: str
    caption: str
    plots: tuple[Plot, ...]
    words: str = ""
    missing: str = ""
    span: tuple[float, float] | None = None

    @property
    def lines(self) -> list[Line]:
        return [line for plot in self.plots for line in plot.lines]


def draw(room: Figure | SubFigure, panel: Panel, legends: bool) -> None:
    """The panel on an empty figure; ``legends`` puts the names of the lines above each plot."""
    stacked = bool(panel.plots[0].areas) and len({plot.unit for plot in panel.plots}) == 1
    every = room.subplots(len(panel.plots), 1, sharex=True, sharey=stacked, squeeze=False)[:, 0]
    for axes, plot in zip(every, panel.plots, strict=True):
        if plot.nothing:
            _write(axes, f"{plot.what}\n{plot.nothing}", axes is every[-1] and len(every) > 1)
            continue
        for line in plot.lines:
            _draw_line(axes, line, plot)
        _stack(axes, plot)
        _y_axis(axes, plot)
        if legends:
            _legend(axes)
    if not all(plot.nothing for plot in panel.plots):
        _x_axis(every[-1], panel)


def _draw_line(axes: Axes, line: Line, plot: Plot) -> None:
    for seed in line.seeds:
        axes.plot(seed[seed > 0] if plot.log else seed, color=line.color, linewidth=0.6, alpha=0.4, zorder=2)
    if line.error is not None:
        low, high = line.values - line.error, line.values + line.error
        axes.fill_between(line.values.index, low, high, color=line.color, alpha=0.15, linewidth=0, zorder=1)
    values = line.values[line.values > 0] if plot.log else line.values
    if values.empty:
        return
    style: dict[str, Any] = {"marker": "o", "markersize": 3.0} if len(values) <= DOTTED_POINTS else {}
    style |= {"color": line.color, "linewidth": line.width if len(values) <= 100 else 0.7 * line.width}
    axes.plot(*with_gaps(values), label=line.name, linestyle=line.dash, zorder=2 + line.width, **style)
    ring: dict[str, Any] = {"marker": "o", "markersize": 7, "markeredgewidth": 1.5, "zorder": 5, "fillstyle": "none"}
    for step, value in line.best:
        axes.plot(step, value, color=line.color, **ring)


def with_gaps(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values with a NaN put in wherever more than ``HOLE`` times the usual distance is missing."""
    steps, data = values.index.to_numpy(float), values.to_numpy(float)
    holes = np.flatnonzero(np.diff(steps) > HOLE * spacing(steps)) + 1
    return np.insert(steps, holes, (steps[holes - 1] + steps[holes]) / 2), np.insert(data, holes, np.nan)


def spacing(steps: np.ndarray) -> float:
    """The usual distance between two logged steps (median), 1 when there is only one."""
    return float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0


def blocks(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Edges (n + 1) and heights (n) of a bar a step without space between; NaN in a hole of the steps."""
    steps, heights = with_gaps(values)
    half = spacing(values.index.to_numpy(float)) / 2
    return np.concatenate([[steps[0] - half], (steps[1:] + steps[:-1]) / 2, [steps[-1] + half]]), heights


def _stack(axes: Axes, plot: Plot) -> None:
    areas = [area for area in plot.areas if len(area.values)]
    common = pd.concat([area.values for area in areas], axis=1, join="inner").index if areas else []
    floor: np.ndarray | float = 0.0
    for area in areas if len(common) else ():
        edges, heights = blocks(area.values.loc[common])
        axes.stairs(floor + heights, edges, baseline=floor, fill=True, color=area.color, label=area.name, linewidth=0)
        floor = floor + heights
    line = plot.outline
    if line is not None and len(line.values):
        edges, heights = blocks(line.values)
        width = 80 / max(100, len(heights))  # else it covers the areas of a long run
        axes.stairs(heights, edges, baseline=None, color=line.color, label=line.name, linewidth=width)


def _y_axis(axes: Axes, plot: Plot) -> None:
    if plot.log:
        axes.set_yscale("log")
        low, high = axes.dataLim.intervaly
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0), numticks=9))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4 if plot.unit == "%" else 5))
        if plot.from_zero and axes.dataLim.y0 >= 0:
            axes.set_ylim(bottom=0)
    scale, sign = (100, "%") if plot.unit == "%" else (1, "")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short_exponent(f"{scale * y:g}{sign}")))
    axes.set_ylabel(plot.label)


def _x_axis(axes: Axes, panel: Panel) -> None:
    plot = panel.plots[-1]
    axes.set_xlabel(plot.x)
    if plot.x in TICKS:
        axes.set_xticks(*TICKS[plot.x])
        return
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    if panel.span is not None:
        room = max(0.5, 0.015 * (panel.span[1] - panel.span[0]))
        axes.set_xlim(panel.span[0] - room, panel.span[1] + room)
    if plot.stop is not None and axes.dataLim.x1 >= plot.stop:
        axes.axvline(plot.stop, color=PALETTE["soft"], linewidth=0.8, zorder=0)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()

    def letters(columns: int) -> int:  # matplotlib fills it column by column, and a handle takes about five
        return sum(max(map(len, column)) + 5 for column in np.array_split(np.array(labels), columns) if len(column))

    columns = next((n for n in (len(labels), -(-len(labels) // 2)) if n and letters(n) <= LEGEND_WIDTH), 1)
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, borderpad=0,
                handlelength=1.2, columnspacing=1.2, handletextpad=0.5)  # fmt: skip


def _write(axes: Axes, words: str, steps: bool) -> None:
    """A sentence in place of a drawing; ``steps`` leaves the axis of the steps below it."""
    axes.grid(False)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_visible(steps)
    axes.spines.bottom.set_visible(steps)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=PALETTE["soft"])
