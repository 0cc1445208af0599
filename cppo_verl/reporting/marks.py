"""What the panels are made of: lines that break at holes, stacked areas, legends and axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cppo_verl.reporting.style import PALETTE
from cppo_verl.reporting.summary import NOT_LOGGED, short_exponent

LEGEND_WIDTH = 54  # letters that fit above the axes of the narrowest panel


def spacing(steps: Sequence[int] | np.ndarray) -> float:
    """The usual distance between two logged steps (median), 1 when there is only one."""
    return float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0


def with_gaps(values: pd.Series, times: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values with a NaN put in wherever more than ``times`` the usual distance is missing."""
    steps, data = values.index.to_numpy(float), values.to_numpy(float)
    holes = np.flatnonzero(np.diff(steps) > times * spacing(steps)) + 1
    return np.insert(steps, holes, (steps[holes - 1] + steps[holes]) / 2), np.insert(data, holes, np.nan)


def blocks(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Edges (n + 1) and heights (n) of a bar a step without space between; a hole in the steps is a NaN bar."""
    steps, data = values.index.to_numpy(float), values.to_numpy(float)
    distance = spacing(steps)
    edges, heights = [steps[0] - distance / 2], []
    for i, height in enumerate(data):
        heights.append(height)
        following = steps[i + 1] if i + 1 < len(steps) else np.inf
        if following - steps[i] <= 1.5 * distance:
            edges.append((steps[i] + following) / 2)
            continue
        edges.append(steps[i] + distance / 2)
        if np.isfinite(following):
            heights.append(np.nan)
            edges.append(following - distance / 2)
    return np.array(edges), np.array(heights)


def line(axes: Axes, values: pd.Series, color: str, **style) -> None:
    """A line through the logged points, broken at holes; a point with no neighbour is a dot."""
    steps, data = with_gaps(values)
    style.setdefault("linewidth", _width(1.5, len(values)))
    axes.plot(steps, data, color=color, **style)
    known = np.pad(np.isfinite(data), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    if alone.any():
        axes.plot(steps[alone], data[alone], color=color, linestyle="none", marker="o", markersize=3.5)


def named_line(
    axes: Axes, label: str, values: pd.Series, color: str, dash: str, positive: bool = False, **style: Any
) -> None:
    """A metric as a line with a legend entry that says when it was not logged, or has nothing a log scale can show."""
    shown = values[values > 0] if positive else values
    if values.empty:
        label = f"{label} ({NOT_LOGGED})"
    elif shown.empty:
        label = f"{label} (always 0)"
    line(axes, shown, PALETTE[color], label=label, linestyle=dash, **style)


def stack(axes: Axes, parts: Sequence[tuple[str, pd.Series, str]]) -> None:
    """Areas on top of each other, over the steps that logged all parts that were logged at all."""
    logged = [values for _, values, _ in parts if len(values)]
    common = pd.concat(logged, axis=1, join="inner").index if logged else pd.Index([])
    floor: np.ndarray | float = 0.0
    for label, values, color in parts:
        if values.empty or common.empty:
            axes.fill_between([], [], [], color=color, label=f"{label} ({NOT_LOGGED})")
            continue
        edges, heights = blocks(values.loc[common])
        axes.stairs(floor + heights, edges, baseline=floor, fill=True, color=color, label=label, linewidth=0)
        floor = floor + heights


def outline(axes: Axes, label: str, values: pd.Series) -> None:
    """The upper edge that a stack adds up to."""
    if values.empty:
        axes.plot([], [], color=PALETTE["ink"], label=f"{label} ({NOT_LOGGED})")
        return
    edges, heights = blocks(values)
    axes.stairs(heights, edges, baseline=None, color=PALETTE["ink"], label=label, linewidth=_width(0.8, len(values)))


def _width(usual: float, points: int) -> float:
    """Thinner lines where many points share the width."""
    return usual if points <= 100 else 0.6 * usual


def legend(axes: Axes) -> None:
    """Above the axes, in as many columns as a narrow panel has room for."""
    handles, labels = axes.get_legend_handles_labels()
    columns = next((n for n in (len(labels), -(-len(labels) // 2)) if _letters(labels, n) <= LEGEND_WIDTH), 1)
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.2,
        handletextpad=0.5,
        borderpad=0,
    )


def _letters(labels: Sequence[str], columns: int) -> int:
    """Width of a legend in letters; matplotlib fills it column by column, and a handle takes about five."""
    filled = [column for column in np.array_split(np.array(labels), max(columns, 1)) if len(column)]
    return sum(max(map(len, column)) + 5 for column in filled)


def percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))


def plain_axis(axes: Axes, label: str) -> None:
    from_zero(axes)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def log_axis(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: short_exponent(f"{x:g}")))
    axes.set_ylabel(label)


def from_zero(axes: Axes) -> None:
    """Let the axis start at 0, unless that would hide something."""
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)


def write_in_place(axes: Axes, words: str, steps: bool = False) -> None:
    """A sentence in place of a drawing; ``steps`` leaves the axis of the steps below it."""
    axes.grid(False)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_visible(steps)
    axes.spines.bottom.set_visible(steps)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=PALETTE["soft"])
