"""How the drawings look: colours, sizes, and a matplotlib configuration of their own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib

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

PNG_STYLE = {"font.size": 10, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9}

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
