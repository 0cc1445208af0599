"""How a report writes numbers, and text that Markdown, LaTeX and CSV take as it is."""

import csv
import re
from collections.abc import Sequence
from io import StringIO

NOT_LOGGED = "not logged"
ABSENT = "–"
TEX = str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
                    | {letter: "\\" + letter for letter in "&%$#_{}"})  # fmt: skip
MARKDOWN = str.maketrans({letter: "\\" + letter for letter in "\\`*_[]<>#|"})


def number(x: float, unit: str = "") -> str:
    """``x`` in its unit: ``%`` of a fraction, ``s``, or none."""
    return percent(x) if unit == "%" else f"{plain(x)} {unit}".rstrip()


def percent(x: float) -> str:
    """0.4823 as 48.2%; below one percent with two significant digits, so that a small share does not read as none."""
    return short_exponent(f"{100 * x:#.2g}%") if 0 < abs(x) < 0.01 else f"{100 * x:.1f}%"


def plain(x: float) -> str:
    """Three significant digits: 0.482, 12.0, 1.20e-9; whole numbers from 1000 on."""
    if x == 0 or 1000 <= abs(x) < 1e6:
        return f"{x:.0f}"
    return short_exponent(f"{x:#.3g}".removesuffix("."))


def short_exponent(text: str) -> str:
    """``1e-05`` as ``1e-5``."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].replace("+", ""), text)


def short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def seconds(x: float) -> str:
    return number(x, "s")


def duration(hours: float) -> str:
    return f"{plain(60 * hours)} min" if hours < 1 else f"{plain(hours)} h"


def minus(text: str) -> str:
    return text.replace("-", "−")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def md(text: object) -> str:
    return " ".join(str(text).split()).translate(MARKDOWN)


def md_table(heads: Sequence[str], rows: Sequence[Sequence[object]], rule: str = "---:") -> str:
    """A table of Markdown; ``rule`` aligns all columns but the first."""
    lines = [[md(cell) for cell in line] for line in (heads, *rows)]
    lines.insert(1, ["---"] + [rule] * (len(heads) - 1))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tex(text: str) -> str:
    return text.translate(TEX)


def csv_text(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as CSV; None is an empty cell."""
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([heads, *rows])
    return buffer.getvalue()
