"""Writes the report of a run: page, Markdown, picture and table."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from cppo_verl import atomic
from cppo_verl.reporting import pictures
from cppo_verl.reporting.answers import disagreements
from cppo_verl.reporting.logs import Run, listing
from cppo_verl.reporting.panels import panels_of, steps_a_point
from cppo_verl.reporting.settings import settings_table
from cppo_verl.reporting.summary import headline, number_rows
from cppo_verl.reporting.template import render
from cppo_verl.reporting.text import NOT_LOGGED, count

INSPECTOR = "inspect.html"  # the page of single tokens, beside a run's report
START = "start.txt"  # what trained, as it was said at the run's start
WORDS = {
    "inspector": INSPECTOR,
    "tokens": "What the trust region did, token by token",
    "number_heads": ("metric", "first", "last", "lowest", "highest"),
    "no_settings": "No config.yaml beside the log, so the settings are not known.",
}


def write_report(run: Run, out: Path, title: str | None = None, recorded: str = "") -> list[Path]:
    """Write report.png, report.md, metrics.csv and report.html to ``out``, each atomically; their paths, page last.

    Args:
        title: in the place of the run's name.
        recorded: what the page of single tokens beside the report shows, in words; empty when there is none.
    """
    out.mkdir(parents=True, exist_ok=True)
    said = content_of(run, title, recorded)
    with atomic.replacing(out / "metrics.csv") as path:
        run.frame.to_csv(path, index_label="step", lineterminator="\n", encoding="utf-8", errors="replace")
    drawings = {panel.key: Markup(pictures.svg(panel, panel.key)) for panel in said["panels"] if panel.caption}
    written = {
        "report.png": figure_png(run, said),
        "report.md": render("run.md", **said).encode(),
        "report.html": render("run.html", drawings=drawings, **said).encode(),
    }
    for name, data in written.items():
        atomic.write(out / name, data)
    return [out / name for name in ("metrics.csv", *written)]


def content_of(run: Run, title: str | None = None, recorded: str = "") -> dict[str, Any]:
    """What page and Markdown both say, by the names of the templates; arguments as in ``write_report``."""
    rows = number_rows(run)
    return {
        **WORDS,
        "name": title or run.name,
        "title": f"{title or run.name}: {headline(run).sentence()}",
        "head": headline(run),
        "recorded": recorded,
        "notes": run.notes,
        "settings": settings_table(run.settings),
        "start": start_table(run.place),
        "panels": panels_of(run, rows),
        "numbers": rows,
        "number_cells": [(row.label, *(row.cells or (NOT_LOGGED, "", "", ""))) for row in rows],
        "answers": disagreements(run.place) if run.place is not None else None,
        "footer": _footer(run),
    }


def figure_png(run: Run, said: dict[str, Any]) -> bytes:
    """The run's panels as one PNG, two in a row."""
    points, head = steps_a_point(run.frame), said["head"]
    means = f" Points are means of {points} steps." if points > 1 else ""
    subtitle = f"{said['name']}  ·  {head.detail}{means}"
    return pictures.compose(said["panels"], head.sentence(), subtitle, kinds=("png",))["png"]


def start_table(place: Path | None) -> str:
    """What the run said at its start of who won, its own text; empty where it kept none."""
    if place is None or not (place / START).is_file():
        return ""
    return (place / START).read_text(encoding="utf-8", errors="replace").rstrip()


def _footer(run: Run) -> str:
    steps, points = run.frame.index, steps_a_point(run.frame)
    span = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
    drawn = "Nothing is smoothed." if points == 1 else f"A drawn point is the mean of {points} steps, the table is not."
    return f"{count(len(steps), 'step')} ({span}) from {listing(file.path for file in run.files)}. {drawn}"
