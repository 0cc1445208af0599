"""Writes the report of a run: page, Markdown, picture and table."""

from pathlib import Path
from typing import Any

from cppo_verl import atomic
from cppo_verl.reporting import pictures
from cppo_verl.reporting.answers import disagreements
from cppo_verl.reporting.logs import Run, listing
from cppo_verl.reporting.panels import panels_of
from cppo_verl.reporting.settings import settings_table
from cppo_verl.reporting.summary import headline, number_rows
from cppo_verl.reporting.template import render
from cppo_verl.reporting.text import NOT_LOGGED, count

INSPECTOR = "inspect.html"  # the page of single tokens, beside a run's report
START = "start.txt"  # what trained, as it was said at the run's start


def write_report(run: Run, out: Path, title: str | None = None, recorded: str = "") -> list[Path]:
    """Write report.png, report.md, metrics.csv and report.html to ``out``, each atomically; their paths, page last.
    ``recorded`` says what the page of single tokens beside the report shows; empty when there is none."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(out / "metrics.csv") as path:
        run.frame.to_csv(path, index_label="step", lineterminator="\n", encoding="utf-8", errors="replace")
    head, rows, name, steps = headline(run), number_rows(run), title or run.name, run.frame.index
    panels = panels_of(run, rows)
    start = run.place / START if run.place is not None else None
    span = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
    said: dict[str, Any] = {
        "name": name,
        "title": f"{name}: {head.sentence()}",
        "head": head,
        "recorded": recorded,
        "inspector": INSPECTOR,
        "tokens": "What the trust region did, token by token",
        "notes": run.notes,
        "settings": settings_table(run.settings),
        "no_settings": "No config.yaml beside the log, so the settings are not known.",
        "start": start.read_text("utf-8", errors="replace").rstrip() if start is not None and start.is_file() else "",
        "panels": panels,
        "number_heads": ("metric", "first", "last", "lowest", "highest"),
        "numbers": [(row.label, *(row.cells or (NOT_LOGGED, "", "", ""))) for row in rows],
        "answers": disagreements(run.place) if run.place is not None else None,
        "footer": f"{count(len(steps), 'step')} ({span}) from {listing(run.files)}. Nothing is smoothed.",
    }
    drawings = {panel.key: pictures.svg(panel, panel.key) for panel in panels if panel.caption}
    written: dict[str, str | bytes] = {
        "report.png": pictures.compose(panels, head.sentence(), f"{name}  ·  {head.detail}", kinds=("png",))["png"],
        "report.md": render("run.md", **said),
        "report.html": render("run.html", drawings=drawings, **said),
    }
    for file, data in written.items():
        atomic.write(out / file, data)
    return [out / file for file in ("metrics.csv", *written)]
