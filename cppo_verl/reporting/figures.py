"""The panels, each a function that draws a run on an empty figure; the same functions serve the PNG and the page.

A line breaks where steps are missing (validation excepted, which is sparse and irregular), and what was not logged is
said to be so, not drawn as zero. Every logged step is drawn as it is up to ``DRAWN_POINTS`` of them; beyond, a point is
the mean of so many steps, and the caption says so.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from textwrap import fill, shorten

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cppo_verl.reporting import marks, names
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.style import PALETTE, PNG_STYLE, drawing_style
from cppo_verl.reporting.summary import NOT_LOGGED, first_logged, series, validation

DRAWN_POINTS = 400

PNG_SIZE_INCHES = (12.0, 13.5)  # of three rows of panels; each row more adds PNG_ROW_INCHES
PNG_ROW_INCHES = 4.2
PNG_DPI = 150


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
    """The run's panels as one PNG at ``PNG_DPI``, two in a row; the same run gives the same bytes."""
    if (points := steps_a_point(run)) > 1:
        subtitle += f" Points are means of {points} steps."
    with drawing_style(PNG_STYLE):
        panels = panels_of(run)
        rows = -(-len(panels) // 2)
        wide, high = PNG_SIZE_INCHES[0], PNG_SIZE_INCHES[1] + (rows - 3) * PNG_ROW_INCHES
        figure = Figure(figsize=(wide, high), dpi=PNG_DPI, layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.12))
        canvas = FigureCanvasAgg(figure)
        head, body = np.asarray(figure.subfigures(2, 1, height_ratios=(0.21 / rows, 1)))
        head.text(0.02, 0.62, shorten(title, 90), fontsize=17, ha="left", va="center")
        lines = fill(subtitle, 150, max_lines=2)
        head.text(0.02, 0.3, lines, fontsize=10, ha="left", va="top", color=PALETTE["soft"])
        rooms = np.asarray(body.subfigures(rows, 2, wspace=0.05, hspace=0.06)).flat
        for panel, room in zip(panels, rooms, strict=False):  # the last row may be half full
            room.suptitle(panel.title, x=0.03, ha="left", fontsize=11.5, fontweight="bold")
            panel.draw(room, run)
        buffer = BytesIO()
        canvas.print_png(buffer, metadata={"Software": None, "Description": title})
    return buffer.getvalue()


def panels_of(run: Run) -> tuple[Panel, ...]:
    """The six panels of every run; those of old responses and of steered thresholds where a run logged such things."""
    moved = series(run, names.SCALE)
    extra = (*STALE_PANELS,) if len(series(run, names.SPANNING)) else ()
    return (*PANELS, *extra, *((STEERED_PANEL,) if (moved != 1).any() else ()))


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
    steps, width = run.frame.index.to_numpy(float), count * marks.spacing(run.frame.index.to_numpy())
    drawn = run.frame[[name for name in names.LINES if name in run.frame]]
    finite = drawn.where(np.isfinite(drawn))
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
        marks.write_in_place(top, f"validation accuracy\n{NOT_LOGGED}")
    else:
        several = len(found.by_source) > 1
        for values, dash in zip(found.by_source.values(), _dashes(), strict=False):
            if several:
                top.plot(values.index, values, color=PALETTE["stone"], linestyle=dash, linewidth=1.0)
        label = f"validation {found.kind}" + (f", mean of {len(found.by_source)}" if several else "")
        marker = "o" if len(found.mean) <= 60 else None
        top.plot(found.mean.index, found.mean, color=PALETTE["orange"], label=label, marker=marker, markersize=3)
        if several:
            sources = ", ".join(found.by_source)
            label = sources if len(sources) < marks.LEGEND_WIDTH else "each set"
            top.plot([], [], color=PALETTE["stone"], linewidth=1.0, label=label)
        if found.kind == "accuracy":
            marks.percent_axis(top)
        marks.legend(top)
    name = first_logged(run, names.REWARD)
    if name is None:
        marks.write_in_place(bottom, f"training reward\n{NOT_LOGGED}", steps=True)
    else:
        marks.line(bottom, series(coarse(run), name), PALETTE["blue"], label="training reward")
        marks.legend(bottom)
    _step_axis(figure, run)


def draw_masked(figure: Figure | SubFigure, run: Run) -> None:
    """Masked share of the tokens, split by the constraint that masked them, and by the sign of the advantage."""
    by_cause = [("token threshold", names.MASKED_BY_TOKEN, "blue"), ("prefix budget", names.MASKED_BY_BUDGET, "orange")]
    by_sign = [("advantage > 0", names.MASKED_POSITIVE, "teal"), ("advantage < 0", names.MASKED_NEGATIVE, "stone")]
    top, bottom = _stacked(figure, sharey=True)
    drawn = coarse(run)
    for axes, parts, split in ((top, by_cause, "constraint"), (bottom, by_sign, "sign of the advantage")):
        values = [series(run, name) for name in (names.MASKED, *(name for _, name, _ in parts))]
        if not any(value.any() for value in values):
            marks.write_in_place(axes, f"masked share by {split}\n{_nothing(values)}", steps=axes is bottom)
            continue
        marks.stack(axes, [(label, series(drawn, name), PALETTE[color]) for label, name, color in parts])
        marks.outline(axes, "all", series(drawn, names.MASKED))
        marks.percent_axis(axes)
        marks.from_zero(axes)
        marks.legend(axes)
    _step_axis(figure, run)


def draw_positions(figure: Figure | SubFigure, run: Run) -> None:
    """Mean divergence over eight bins of the relative position, a line for each third of the run."""
    axes = figure.subplots()
    if not _logged(run, *names.BY_POSITION):
        marks.write_in_place(axes, f"divergence by position\n{NOT_LOGGED}")
        return
    centres = (np.arange(names.POSITION_BINS) + 0.5) / names.POSITION_BINS
    for (label, means), color in zip(thirds(run), ("late", "middle", "early"), strict=False):
        axes.plot(centres, means, color=PALETTE[color], label=label, marker="o", markersize=3.5)
    axes.set_xlim(0, 1)
    axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("start", "25%", "50%", "75%", "end"))
    axes.set_xlabel("position in the response")
    marks.plain_axis(axes, "mean divergence")
    marks.legend(axes)


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
        marks.write_in_place(axes, f"effective delta_b and prefix average\n{NOT_LOGGED}")
        return
    drawn = coarse(run)
    marks.named_line(axes, "effective delta_b", series(drawn, names.EFFECTIVE_BUDGET), "orange", "--")
    marks.named_line(axes, "prefix average S/W", series(drawn, names.PREFIX_AVERAGE), "blue", "-")
    marks.plain_axis(axes, "divergence per unit weight")
    marks.legend(axes)
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
        marks.write_in_place(axes, f"divergence\n{_nothing([values for _, values, _, _ in lines])}")
        return
    for line in lines:
        marks.named_line(axes, *line, positive=True)
    marks.log_axis(axes, "divergence")
    marks.legend(axes)
    _step_axis(figure, run)


def draw_versions(figure: Figure | SubFigure, run: Run) -> None:
    """How old responses were, above; how much of the batch their importance weights leave, below."""
    top, bottom = _stacked(figure)
    drawn = coarse(run)
    marks.named_line(top, "oldest response", series(drawn, names.BEHIND_MAX), "stone", "-")
    marks.named_line(top, "mean", series(drawn, names.BEHIND_MEAN), "blue", "-")
    marks.plain_axis(top, "versions behind")
    marks.legend(top)
    marks.named_line(bottom, "of the tokens", series(drawn, names.SAMPLE_SIZE_TOKENS), "teal", "-")
    marks.named_line(bottom, "of the responses", series(drawn, names.SAMPLE_SIZE_RESPONSES), "orange", "--")
    marks.percent_axis(bottom)
    marks.from_zero(bottom)
    bottom.set_ylabel("effective sample")
    marks.legend(bottom)
    _step_axis(figure, run)


def draw_staleness(figure: Figure | SubFigure, run: Run) -> None:
    """Divergence and masked share by versions behind, means over the whole run."""
    top, bottom = _stacked(figure)
    for label, metrics, color, dash, axes in (
        ("before any update", names.FIRST_BY_STALENESS, "orange", "--", top),
        ("over all updates", names.DIVERGENCE_BY_STALENESS, "blue", "-", top),
        ("masked share", names.MASKED_BY_STALENESS, "teal", "-", bottom),
    ):
        frame = run.frame.reindex(columns=list(metrics))
        means = frame.where(np.isfinite(frame)).mean().to_numpy()
        marks.named_line(axes, label, pd.Series(means).dropna(), color, dash, marker="o", markersize=3.5)
    marks.plain_axis(top, "mean divergence")
    marks.percent_axis(bottom)
    marks.from_zero(bottom)
    for axes in (top, bottom):
        marks.legend(axes)
    last = names.STALENESS_BINS - 1
    bottom.set_xticks(range(last + 1), [*map(str, range(last)), f"{last} or more"])
    bottom.set_xlabel("versions behind")


def draw_scale(figure: Figure | SubFigure, run: Run) -> None:
    """What the thresholds were multiplied with."""
    axes = figure.subplots()
    marks.named_line(axes, "scale of delta and delta_b", series(coarse(run), names.SCALE), "blue", "-")
    marks.plain_axis(axes, "times the configured value")
    marks.legend(axes)
    _step_axis(figure, run)


def draw_time(figure: Figure | SubFigure, run: Run) -> None:
    """Seconds a step, stacked: generation, update, and what is left of the step."""
    axes = figure.subplots()
    if not _logged(run, names.TIME_STEP, names.TIME_GEN, names.TIME_UPDATE):
        marks.write_in_place(axes, f"step time\n{NOT_LOGGED}")
        return
    drawn = coarse(run)
    parts = [
        ("generation", series(drawn, names.TIME_GEN), PALETTE["blue"]),
        ("actor update", series(drawn, names.TIME_UPDATE), PALETTE["teal"]),
        ("other", other_time(drawn), PALETTE["stone"]),
    ]
    marks.stack(axes, parts)
    marks.outline(axes, "whole step", series(drawn, names.TIME_STEP))
    marks.plain_axis(axes, "seconds")
    marks.legend(axes)
    _step_axis(figure, run)


def other_time(run: Run) -> pd.Series:
    """Step time that is neither generation nor update, at the steps that logged all three; never below 0."""
    named = {"step": names.TIME_STEP, "gen": names.TIME_GEN, "update": names.TIME_UPDATE}
    times = pd.concat({label: series(run, name) for label, name in named.items()}, axis=1, join="inner")
    return (times["step"] - times["gen"] - times["update"]).clip(lower=0.0)


def _stacked(figure: Figure | SubFigure, sharey: bool = False) -> tuple[Axes, Axes]:
    top, bottom = figure.subplots(2, 1, sharex=True, sharey=sharey)
    return top, bottom


def _logged(run: Run, *metrics: str) -> bool:
    return any(len(series(run, name)) for name in metrics)


def _nothing(values: Iterable[pd.Series]) -> str:
    """Why there is nothing to draw."""
    return "0 at every step" if any(map(len, values)) else NOT_LOGGED


def _dashes() -> tuple[str, ...]:
    return ("-", "--", ":", "-.") * 8


def _step_axis(figure: Figure | SubFigure, run: Run) -> None:
    first, last = float(run.frame.index[0]), float(run.frame.index[-1])
    room = max(0.5, 0.015 * (last - first))
    axes = figure.axes[-1]
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axes.set_xlabel("step")


PANELS = (
    Panel(
        "learning",
        "Validation and training reward",
        "Both should rise together; a reward that climbs while validation stalls or falls hints at learning the "
        "training prompts alone.",
        draw_learning,
        "Each point of the reward is the mean of {} steps.",
    ),
    Panel(
        "masked",
        "Masked tokens",
        "The height is the share of response tokens whose update was dropped (with a soft gate, the share taken away): "
        "above, by the constraint; below, by the sign of the advantage; both add up to the outline.",
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
        "On this log scale, which has no zero, the dashed line is the gap between rollout engine and trainer at equal "
        "weights; it should lie well below the mean, or the trust region is spent on numerical noise.",
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

STALE_PANELS = (
    Panel(
        "versions",
        "Age of the responses",
        "Above, by how many versions the weights that sampled a response are older than those that train on it. Below, "
        "what share of the batch is left when responses count by their importance weights: near 0, a few of them make "
        "the gradient.",
        draw_versions,
    ),
    Panel(
        "staleness",
        "What age costs",
        "Means over the run by versions behind. The dashed line is the divergence before any update: what age alone "
        "has spent of the trust region.",
        draw_staleness,
        "",
    ),
)
STEERED_PANEL = Panel(
    "scale",
    "Steered thresholds",
    "budget_target multiplies delta and delta_b with this, anew after each step, until the asked share is masked.",
    draw_scale,
)
