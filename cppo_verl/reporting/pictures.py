"""Panels as files and for pages: several as one PNG or PDF, one as an ``<svg>`` element; same input, same bytes.

But for PNG: matplotlib rounds a few pixels of slanted edges up or down by one level of 255, anew in each process.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import files
from io import BytesIO, StringIO
from math import ceil
from textwrap import fill, shorten
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from cppo_verl.reporting.plots import PALETTE, Panel, draw

DPI = 150
SVG_INCHES = (3.7, 2.9)  # at phone width a point is then about a CSS pixel and a quarter
LARGER = {"font.size": 10, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9}
FALLBACKS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
             "Droid Sans Fallback", "Arial Unicode MS", "Noto Sans Arabic", "Unifont")  # fmt: skip


@contextmanager
def drawing_style(**more: Any) -> Iterator[None]:
    """The report's own matplotlib settings, whatever the user's are; restored on leaving."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.style.use(str(files("cppo_verl.reporting") / "assets/figures.mplstyle"))
        matplotlib.rcParams.update({"font.family": families()} | more)  # type: ignore[arg-type]
        yield


def compose(
    panels: Sequence[Panel], title: str, subtitle: str = "", caption: str = "", columns: int = 2,
    inches: tuple[float, float] = (6.0, 4.2), legend: bool = False, kinds: Sequence[str] = ("png", "pdf"),
) -> dict[str, bytes]:  # fmt: skip
    """All panels on one page, ``columns`` in a row of ``inches`` each, below the title a sentence (``subtitle``) or the
    names of all lines (``legend``; else each plot has its own), and below them ``caption``; the file by its kind. A
    name with letters that no font here has is a number, which the caption spells out."""
    named = stand_ins([line.name for panel in panels for line in panel.lines])
    panels = [_renamed(panel, named) for panel in panels]
    odd = {name.encode("ascii", "backslashreplace").decode(): x for name, x in named.items() if name != x}
    caption += "".join(f" {number}: {name}." for name, number in odd.items())
    with drawing_style(**LARGER):
        columns = min(columns, len(panels))
        rows, width = ceil(len(panels) / columns), columns * inches[0]
        said = fill(caption, round(width * 14)).splitlines()
        foot, body = 0.2 * len(said) + 0.15 * bool(said), rows * inches[1]
        height = 0.95 + body + foot
        engine = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1, rect=(0, foot / height, 1, body / height))
        figure, left = Figure((width, height), DPI, layout=engine), 0.2 / width
        large = 16 if columns > 1 else 11.5
        figure.text(left, 1 - 0.3 / height, shorten(title, 100), fontsize=large, va="center")
        below = fill(subtitle, round(width * 12.5), max_lines=2)
        figure.text(left, 1 - 0.6 / height, below, fontsize=10, va="top", color=PALETTE["soft"])
        figure.text(left, (foot - 0.03) / height, "\n".join(said), fontsize=9, va="top", color=PALETTE["soft"])
        if legend:
            lines = {line.name: line for panel in panels for line in panel.lines}.values()
            shown = [Line2D([], [], color=x.color, linestyle=x.dash, linewidth=x.width, label=x.name) for x in lines]
            fit = max(1, round(width * 11 / max(len(line.name) + 6 for line in lines)))
            figure.legend(handles=shown, loc="center left", bbox_to_anchor=(left, 1 - 0.68 / height), ncols=fit,
                          borderaxespad=0, handlelength=2.2, fontsize=9 if columns > 1 else 7.5)  # fmt: skip
        rooms = np.asarray(figure.subfigures(rows, columns)).ravel() if len(panels) > 1 else [figure]
        for panel, room in zip(panels, rooms, strict=False):
            if room is not figure:  # the title of a page of one is its own
                room.suptitle(panel.title, x=0.03, ha="left", fontsize=11, fontweight="bold")
            draw(room, panel, legends=not legend)
        facts = {"png": {"Software": None, "Description": title}, "pdf": {"CreationDate": None, "Title": title}}
        return {kind: _printed(figure, kind, facts[kind]) for kind in kinds}


def _printed(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=DPI)
    return buffer.getvalue()


def svg(panel: Panel, key: str, legends: bool = True) -> Markup:
    """One panel as an ``<svg>`` element without references to anything outside it; ``key`` makes its ids unique."""
    with drawing_style(**{"svg.hashsalt": key}):
        figure = Figure(SVG_INCHES, layout="constrained", facecolor="none")
        draw(figure, panel, legends)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    whole = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", buffer.getvalue())
    whole = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", whole, flags=re.DOTALL)
    root, body = re.split(r"(?<=>)", whole[whole.index("<svg") :], maxsplit=1)
    (box,) = re.findall(r'viewBox="[^"]*"', root)
    about = f'class="plot" role="img" focusable="false" aria-label="{escape(panel.words)}"'
    return Markup(f"<svg {box} {about}>{re.sub('<[^>]*>', _plain_tag, body)}".strip())


def _plain_tag(found: re.Match[str]) -> str:
    """A tag with ids only where something refers to them (those are hashes), short numbers, the page's own font and
    colours, and no namespace, for HTML needs none. Text holds no ``<`` and no ``>``."""
    tag = re.sub(r' id="[^"]*"', "", found[0]) if found[0].startswith("<g ") else found[0]
    tag = re.sub(r"-?[0-9]*\.[0-9]{3,}", lambda number: f"{float(number[0]):.2f}", " ".join(tag.split()))
    tag = re.sub(r"font: (?:[a-z0-9]+ )*?([0-9.]+px)[^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font-family:[^;\"]*;?\s*", "", tag).replace("xlink:href", "href")
    for name, color in PALETTE.items():
        tag = tag.replace(color, f"var(--{name})")
    return tag


@cache
def families() -> list[str]:
    """The fonts that pictures are written in: ours, and for letters that it lacks those that this machine has."""
    there = {entry.name for entry in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in there)]


def stand_ins(names: Sequence[str]) -> dict[str, str]:
    """Name -> what a picture calls it: itself, or where it cannot be drawn a number before what can be."""
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families()]
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = "".join(x for x in name if x.isspace() or any(font.get_char_index(ord(x)) for font in fonts))
        number = 1 + sum(x != shown for x, shown in found.items())
        found[name] = name if plain == name else f"[{number}] {plain}".strip()
    return found


def _renamed(panel: Panel, shown: Mapping[str, str]) -> Panel:
    plots = [
        replace(plot, lines=tuple(replace(line, name=shown[line.name]) for line in plot.lines)) for plot in panel.plots
    ]
    return replace(panel, plots=tuple(plots))
