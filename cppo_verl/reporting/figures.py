"""The six panels, each a function that draws a run on an empty figure; the same functions serve the PNG and the page.

A line breaks where steps are missing, and what was not logged is said to be so, not drawn as zero. Every logged step is
drawn as it is up to ``DRAWN_POINTS`` of them; beyond, a point is the mean of so many steps, and the caption says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cppo_verl.reporting import names
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.summary import NOT_LOGGED, first_logged, series, short_exponent, validation

# The page swaps each of these for a CSS variable of the same name, so that one drawing serves light and dark.
PALETTE = {
    "ink": "#22303c",
    "soft": "#5d6975",
    "rule": "#d5dbe1",
    "blue": "#2b6cb0",
    "orange": "#c05f1a",
    "teal": "#2f8f83",
    "stone": "#8d98a3",
    "early": "#74a0d2",
    "middle": "#3a76b8",
    "late": "#123a66",
}

DRAWN_POINTS = 400

PNG_SIZE_INCHES = (12.0, 13.5)
PNG_DPI = 150
PNG_STYLE = {"font.size": 10, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9}

LEGEND_WIDTH = 54  # letters that fit above the axes of the narrowest panel

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "text.parse_math": False,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["soft"],
    "axes.edgecolor": PALETTE["rule"],
    "xtick.color": PALETTE["soft"],
    "ytick.color": PALETTE["soft"],
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
}


@contextmanager
def drawing_style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The report's own matplotlib settings, whatever the user's are; restored on leaving."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | dict(more or {}))
        yield


@dataclass(frozen=True)
class Panel:
    """A panel: its title, one sentence on how to read it, what draws it, and what to say when a point stands for
    several steps (``{}`` is their number)."""

    key: str
    title: str
    caption: str
    draw: Callable[[Figure | SubFigure, Run], None]
    averaged: str = "Each point is the mean of {} steps."

    def caption_for(self, run: Run) -> str:
        """The caption, with what was averaged in this run."""
        steps = steps_a_point(run)
        return f"{self.caption} {self.averaged.format(steps)}".rstrip() if steps > 1 else self.caption


def figure_png(run: Run, title: str, subtitle: str) -> bytes:
    """All panels as one PNG of ``PNG_SIZE_INCHES`` at ``PNG_DPI``; the same run gives the same bytes."""
    with drawing_style(PNG_STYLE):
        figure = Figure(figsize=PNG_SIZE_INCHES, dpi=PNG_DPI, layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.12))
        canvas = FigureCanvasAgg(figure)
        head, body = np.asarray(figure.subfigures(2, 1, height_ratios=(0.07, 1)))
        head.text(0.02, 0.62, title, fontsize=17, ha="left", va="center")
        head.text(0.02, 0.16, subtitle, fontsize=10, ha="left", va="center", color=PALETTE["soft"])
        rooms = np.asarray(body.subfigures(3, 2, wspace=0.05, hspace=0.06)).flat
        for panel, room in zip(PANELS, rooms, strict=True):
            room.suptitle(panel.title, x=0.03, ha="left", fontsize=11.5, fontweight="bold")
            panel.draw(room, run)
        buffer = BytesIO()
        canvas.print_png(buffer, metadata={"Software": None, "Description": title})
    return buffer.getvalue()


def steps_a_point(run: Run) -> int:
    """How many logged steps one drawn point stands for: 1 up to ``DRAWN_POINTS`` steps."""
    return -(-len(run.frame) // DRAWN_POINTS)


def coarse(run: Run) -> Run:
    """The run with ``steps_a_point`` steps averaged to one, infinities left out; of the largest divergence the maximum.

    The run itself when a point is a step.
    """
    count = steps_a_point(run)
    if count == 1:
        return run
    steps, width = run.frame.index.to_numpy(float), count * spacing(run.frame.index.to_numpy())
    finite = run.frame.where(np.isfinite(run.frame))
    block = (steps - steps[0]) // width
    frame = finite.groupby(block).mean()
    if names.DIVERGENCE_MAX in frame:
        frame[names.DIVERGENCE_MAX] = finite[names.DIVERGENCE_MAX].groupby(block).max()
    frame.index = pd.Index(steps[0] + (frame.index.to_numpy(float) + 0.5) * width - width / count / 2, name="step")
    return replace(run, frame=frame)


def draw_learning(figure: Figure | SubFigure, run: Run) -> None:
    """Validation above, training reward below, on one step axis."""
    top, bottom = _stacked(figure)
    found = validation(run)
    if found is None:
        _say(top, f"validation accuracy\n{NOT_LOGGED}")
    else:
        several = len(found.by_source) > 1
        for values, dash in zip(found.by_source.values(), _dashes(), strict=False):
            if several:
                _line(top, values, PALETTE["stone"], linestyle=dash, linewidth=1.0, marker=None)
        label = f"validation {found.kind}" + (f", mean of {len(found.by_source)}" if several else "")
        marker = "o" if len(found.mean) <= 60 else None
        _line(top, found.mean, PALETTE["orange"], label=label, marker=marker, markersize=3)
        if several:
            top.plot([], [], color=PALETTE["stone"], linewidth=1.0, label=", ".join(found.by_source))
        if found.kind == "accuracy":
            _percent_axis(top)
        _legend(top)
    name = first_logged(run, names.REWARD)
    if name is None:
        _say(bottom, f"training reward\n{NOT_LOGGED}", steps=True)
    else:
        _line(bottom, series(coarse(run), name), PALETTE["blue"], label="training reward")
        _legend(bottom)
    _step_axis(figure, run)


def draw_masked(figure: Figure | SubFigure, run: Run) -> None:
    """Masked share of the tokens, split by the constraint that masked them, and by the sign of the advantage."""
    by_cause = [("token threshold", names.MASKED_BY_TOKEN, "blue"), ("prefix budget", names.MASKED_BY_BUDGET, "orange")]
    by_sign = [("advantage > 0", names.MASKED_POSITIVE, "teal"), ("advantage < 0", names.MASKED_NEGATIVE, "stone")]
    top, bottom = _stacked(figure, sharey=True)
    drawn = coarse(run)
    for axes, parts, split in ((top, by_cause, "constraint"), (bottom, by_sign, "sign of the advantage")):
        if not _logged(run, names.MASKED, *(name for _, name, _ in parts)):
            _say(axes, f"masked share by {split}\n{NOT_LOGGED}", steps=axes is bottom)
            continue
        _stack(axes, [(label, series(drawn, name), PALETTE[color]) for label, name, color in parts])
        _outline(axes, "all", series(drawn, names.MASKED))
        _percent_axis(axes)
        axes.set_ylim(bottom=0)
        _legend(axes)
    _step_axis(figure, run)


def draw_positions(figure: Figure | SubFigure, run: Run) -> None:
    """Mean divergence over eight bins of the relative position, a line for each third of the run."""
    axes = figure.subplots()
    if not _logged(run, *names.BY_POSITION):
        _say(axes, f"divergence by position\n{NOT_LOGGED}")
        return
    centres = (np.arange(names.POSITION_BINS) + 0.5) / names.POSITION_BINS
    for (label, means), color in zip(thirds(run), ("late", "middle", "early"), strict=False):
        axes.plot(centres, means, color=PALETTE[color], label=label, marker="o", markersize=3.5)
    axes.set_xlim(0, 1)
    axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("start", "25%", "50%", "75%", "end"))
    axes.set_xlabel("position in the response")
    _plain_axis(axes, "mean divergence")
    _legend(axes)


def thirds(run: Run) -> list[tuple[str, np.ndarray]]:
    """(steps, mean by position bin) of the last, middle and first third of the logged steps, late first.

    Means are over the steps of a third, each step counting once; a bin that a third never logged is NaN.
    """
    frame = run.frame.reindex(columns=list(names.BY_POSITION))
    frame = frame.where(np.isfinite(frame)).dropna(how="all")
    parts = [frame.iloc[index] for index in np.array_split(np.arange(len(frame)), 3) if len(index)]
    spans = [(int(part.index[0]), int(part.index[-1])) for part in parts]
    labels = [f"step {first}" if first == last else f"steps {first}–{last}" for first, last in spans]
    return [(label, part.mean().to_numpy()) for label, part in zip(labels, parts, strict=True)][::-1]


def draw_budget(figure: Figure | SubFigure, run: Run) -> None:
    """The budget that was granted per unit of weight, and what responses spent of it on average."""
    axes = figure.subplots()
    if not _logged(run, names.EFFECTIVE_BUDGET, names.PREFIX_AVERAGE):
        _say(axes, f"effective delta_b and prefix average\n{NOT_LOGGED}")
        return
    drawn = coarse(run)
    _named_line(axes, "effective delta_b", series(drawn, names.EFFECTIVE_BUDGET), "orange", "--")
    _named_line(axes, "prefix average S/W", series(drawn, names.PREFIX_AVERAGE), "blue", "-")
    _plain_axis(axes, "divergence per unit weight")
    _legend(axes)
    _step_axis(figure, run)


def draw_divergence(figure: Figure | SubFigure, run: Run) -> None:
    """Size of the divergence on a log scale, with the gap between the two engines at equal weights."""
    drawn = coarse(run)
    lines = (
        ("largest", series(drawn, names.DIVERGENCE_MAX), "early", "-"),
        ("99th percentile", series(drawn, names.DIVERGENCE_P99), "middle", "-"),
        ("mean", series(drawn, names.DIVERGENCE_MEAN), "late", "-"),
        ("first-update gap", series(drawn, names.FIRST_UPDATE), "orange", "--"),
    )
    axes = figure.subplots()
    if not any((values > 0).any() for _, values, _, _ in lines):
        _say(axes, "divergence\n" + ("0 at every step" if any(len(line[1]) for line in lines) else NOT_LOGGED))
        return
    for line in lines:
        _named_line(axes, *line, positive=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: short_exponent(f"{x:g}")))
    axes.set_ylabel("divergence")
    _legend(axes)
    _step_axis(figure, run)


def draw_time(figure: Figure | SubFigure, run: Run) -> None:
    """Seconds a step, stacked: generation, update, and what is left of the step."""
    axes = figure.subplots()
    if not _logged(run, names.TIME_STEP, names.TIME_GEN, names.TIME_UPDATE):
        _say(axes, f"step time\n{NOT_LOGGED}")
        return
    drawn = coarse(run)
    parts = [
        ("generation", series(drawn, names.TIME_GEN), PALETTE["blue"]),
        ("actor update", series(drawn, names.TIME_UPDATE), PALETTE["teal"]),
        ("other", other_time(drawn), PALETTE["stone"]),
    ]
    _stack(axes, parts)
    _outline(axes, "whole step", series(drawn, names.TIME_STEP))
    _plain_axis(axes, "seconds")
    _legend(axes)
    _step_axis(figure, run)


def other_time(run: Run) -> pd.Series:
    """Step time that is neither generation nor update, at the steps that logged all three; never below 0."""
    named = {"step": names.TIME_STEP, "gen": names.TIME_GEN, "update": names.TIME_UPDATE}
    times = pd.concat({label: series(run, name) for label, name in named.items()}, axis=1, join="inner")
    return (times["step"] - times["gen"] - times["update"]).clip(lower=0.0)


def spacing(steps: Sequence[int] | np.ndarray) -> float:
    """The usual distance between two logged steps (median), 1 when there is only one."""
    return float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0


def with_gaps(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values with a NaN put in wherever more than 1.5 times the usual distance is missing."""
    steps, data = values.index.to_numpy(float), values.to_numpy(float)
    holes = np.flatnonzero(np.diff(steps) > 1.5 * spacing(steps)) + 1
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


def _stacked(figure: Figure | SubFigure, sharey: bool = False) -> tuple[Axes, Axes]:
    top, bottom = figure.subplots(2, 1, sharex=True, sharey=sharey)
    return top, bottom


def _line(axes: Axes, values: pd.Series, color: str, **style) -> None:
    """A line through the logged points, broken at holes; a point with no neighbour is a dot."""
    steps, data = with_gaps(values)
    style.setdefault("linewidth", _width(1.5, len(values)))
    axes.plot(steps, data, color=color, **style)
    known = np.pad(np.isfinite(data), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    if alone.any():
        axes.plot(steps[alone], data[alone], color=color, linestyle="none", marker="o", markersize=3.5)


def _named_line(
    axes: Axes, label: str, values: pd.Series, color: str, dash: str, positive: bool = False, **style: Any
) -> None:
    """A metric as a line with a legend entry that says when it was not logged, or has nothing a log scale can show."""
    shown = values[values > 0] if positive else values
    if values.empty:
        label = f"{label} ({NOT_LOGGED})"
    elif shown.empty:
        label = f"{label} (always 0)"
    _line(axes, shown, PALETTE[color], label=label, linestyle=dash, **style)


def _stack(axes: Axes, parts: Sequence[tuple[str, pd.Series, str]]) -> None:
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


def _outline(axes: Axes, label: str, values: pd.Series) -> None:
    """The upper edge that a stack adds up to."""
    if values.empty:
        axes.plot([], [], color=PALETTE["ink"], label=f"{label} ({NOT_LOGGED})")
        return
    edges, heights = blocks(values)
    axes.stairs(heights, edges, baseline=None, color=PALETTE["ink"], label=label, linewidth=_width(0.8, len(values)))


def _logged(run: Run, *metrics: str) -> bool:
    return any(len(series(run, name)) for name in metrics)


def _width(usual: float, points: int) -> float:
    """Thinner lines where many points share the width."""
    return usual if points <= 100 else 0.6 * usual


def _dashes() -> tuple[str, ...]:
    return ("-", "--", ":", "-.") * 8


def _legend(axes: Axes) -> None:
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


def _percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))


def _plain_axis(axes: Axes, label: str) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _step_axis(figure: Figure | SubFigure, run: Run) -> None:
    first, last = float(run.frame.index[0]), float(run.frame.index[-1])
    room = max(0.5, 0.015 * (last - first))
    axes = figure.axes[-1]
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axes.set_xlabel("step")


def _say(axes: Axes, words: str, steps: bool = False) -> None:
    """A sentence in place of a drawing; ``steps`` leaves the axis of the steps below it."""
    axes.grid(False)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_visible(steps)
    axes.spines.bottom.set_visible(steps)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=PALETTE["soft"])


PANELS = (
    Panel(
        "learning",
        "Validation and training reward",
        "Both should rise together; a reward that climbs while validation stalls or falls is learned from the training "
        "prompts alone.",
        draw_learning,
        "Each point of the reward is the mean of {} steps.",
    ),
    Panel(
        "masked",
        "Masked tokens",
        "The height is the share of response tokens whose update was dropped: above, by the constraint that dropped "
        "it; below, by the sign of the advantage; both add up to the outline.",
        draw_masked,
    ),
    Panel(
        "positions",
        "Divergence along the response",
        "Each line is the mean over the steps of one third of the run, in eight equal parts of the response: its slope "
        "shows where in a response the policy moves, and the order of the lines how that changed with training.",
        draw_positions,
        "",
    ),
    Panel(
        "budget",
        "Prefix budget",
        "The solid line is what a response spent per unit of weight by its end, the dashed line what it was granted "
        "beside a slack of delta: where the solid line nears or passes the dashed one, the budget masks.",
        draw_budget,
    ),
    Panel(
        "divergence",
        "Size of the divergence",
        "On this log scale the dashed line is the gap between rollout engine and trainer at equal weights; it should "
        "lie well below the mean, or the trust region is spent on numerical noise.",
        draw_divergence,
        "Each point is the mean of {} steps, of the largest divergence their maximum.",
    ),
    Panel(
        "time",
        "Time a step",
        "The height is the seconds a step took, split into generating responses, updating the actor and the rest; "
        "checkpoints count, validation does not.",
        draw_time,
    ),
)
