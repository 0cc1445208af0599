"""Draws the pictures of ``curves``: whole ones as PNG and PDF, single panels as SVG for the page."""

from io import BytesIO
from math import ceil
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from cppo_verl.reporting import marks
from cppo_verl.reporting.curves import Line, Panel, Picture, Style
from cppo_verl.reporting.style import PALETTE, PNG_STYLE, drawing_style
from cppo_verl.reporting.svg import drawing_svg

DPI = 150
PANEL_INCHES = (4.2, 3.0)
SINGLE_INCHES = (7.0, 4.0)
HEAD_INCHES = 0.95
LEGEND_INCHES = 0.25
FOOT_INCHES = 0.22  # a line of the caption
DOTTED_POINTS = 15  # more are drawn as a line alone
HOLE = 4  # times the usual distance of steps, beyond which a line breaks


def picture_files(picture: Picture) -> dict[str, bytes]:
    """The picture as ``png`` and ``pdf``; the same runs give the same bytes."""
    with drawing_style(PNG_STYLE | {"pdf.fonttype": 42}):
        figure = _compose(picture)
        png, pdf = BytesIO(), BytesIO()
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None, "Description": picture.title})
        FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None, "Title": _heading(picture)})
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def panel_drawing(panel: Panel, key: str) -> str:
    """One panel as an ``<svg>`` element."""
    return drawing_svg(key, lambda figure: draw_panel(figure.subplots(), panel), panel.words())


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Lines, bands, marks and axes; no legend and no title."""
    for line in panel.lines:
        _draw_line(axes, line, panel)
    if panel.log:
        marks.log_axis(axes, panel.unit)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_ylabel(panel.unit)
        marks.from_zero(axes)
    if panel.x == "position":
        axes.set_xlim(0, 1)
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("start", "25%", "50%", "75%", "end"))
        axes.set_xlabel("position in the response")
        return
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("step")
    if panel.stop is not None and axes.dataLim.x1 >= panel.stop:
        axes.axvline(panel.stop, color=PALETTE["soft"], linewidth=0.8, zorder=0)


def _draw_line(axes: Axes, line: Line, panel: Panel) -> None:
    color, dash, width = line.style.color, line.style.dash, 2.0 if line.style.bold else 1.4
    front = 4 if line.style.bold else 3
    for seed in line.seeds:
        axes.plot(seed.index, _shown(seed, panel), color=color, linewidth=0.6, alpha=0.4, zorder=2)
    if len(line.error):
        low, high = line.mean - line.error, line.mean + line.error
        axes.fill_between(line.mean.index, low, high, color=color, alpha=0.15, linewidth=0, zorder=1)
    x, y = (line.mean.index, line.mean) if panel.dots else marks.with_gaps(line.mean, HOLE)
    dots = "o" if panel.dots and len(line.mean) <= DOTTED_POINTS else ""
    y = _shown(y, panel)
    axes.plot(x, y, color=color, linestyle=dash, linewidth=width, marker=dots, markersize=2.2, zorder=front)
    for step, value in line.best:
        axes.plot(step, value, marker="o", markersize=7, color=color, fillstyle="none", linestyle="none", zorder=5)
    for step, value in line.collapsed:
        axes.plot(step, value, marker="x", markersize=7, markeredgewidth=2, color=color, linestyle="none", zorder=5)


def _shown(values, panel: Panel) -> np.ndarray:
    """What a log scale cannot show is left out."""
    data = np.asarray(values, dtype=float)
    return np.where(data > 0, data, np.nan) if panel.log else data


def _compose(picture: Picture) -> Figure:
    count = len(picture.panels)
    columns = min(3, count)
    rows = ceil(count / columns)
    one = PANEL_INCHES if count > 1 else SINGLE_INCHES
    caption = fill(picture.caption, round(columns * one[0] * 14.5)).splitlines()
    foot = FOOT_INCHES * (len(caption) + 0.5)
    head = HEAD_INCHES if picture.legend else HEAD_INCHES - LEGEND_INCHES
    width, height = columns * one[0], rows * one[1] + head + foot
    figure = Figure(figsize=(width, height), dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.62 / width, right=1 - 0.2 / width, top=1 - (head + 0.1 if count > 1 else head) / height,
        bottom=(foot + 0.55) / height, wspace=0.24, hspace=0.5,
    )  # fmt: skip
    figure.text(
        0.2 / width, 1 - 0.32 / height, _heading(picture), fontsize=14 if columns > 1 else 11.5, ha="left", va="center"
    )
    figure.text(0.2 / width, (foot - 0.06) / height, "\n".join(caption), fontsize=9, va="top", color=PALETTE["soft"])
    for axes, panel in zip(grid.flat, picture.panels, strict=False):
        draw_panel(axes, panel)
        if count > 1:
            axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold")
        if not picture.legend:
            own = [(line.name, line.style) for line in panel.lines]
            _legend(axes, own, 1, loc="lower right", fontsize=7.5, labelspacing=0.3)
    for axes in list(grid.flat)[count:]:
        axes.set_visible(False)
    if picture.legend:
        place = {"loc": "center left", "bbox_to_anchor": (0.2 / width, 1 - 0.62 / height), "columnspacing": 1.2}
        _legend(figure, picture.styles, len(picture.styles), fontsize=9.5 if columns > 1 else 7.5, **place)
    return figure


def _legend(room: Axes | Figure, styles: list[tuple[str, Style]], columns: int, **more) -> None:
    handles = [
        Line2D([], [], color=style.color, linestyle=style.dash, linewidth=2.0 if style.bold else 1.4, label=name)
        for name, style in styles
    ]
    room.legend(handles=handles, ncols=columns, borderaxespad=0, handlelength=2.2, handletextpad=0.5, **more)


def _heading(picture: Picture) -> str:
    return f"{picture.model}: {picture.heading}"
