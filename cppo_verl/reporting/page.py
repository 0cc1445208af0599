"""Writes the report of a run: page, Markdown, picture and table."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cppo_verl import __version__, atomic
from cppo_verl.reporting.figures import Panel, figure_png, panels_of, steps_a_point
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.names import INSPECTOR
from cppo_verl.reporting.settings import settings_table
from cppo_verl.reporting.summary import ARROW, NOT_LOGGED, Headline, NumberRow, headline, number_rows
from cppo_verl.reporting.svg import panel_svg
from cppo_verl.reporting.template import PAGE, STYLE

TOKENS = "What the trust region did, token by token"
NUMBER_HEADS = ("first", "last", "lowest", "highest")
NO_SETTINGS = "No config.yaml beside the log, so the settings are not known."


@dataclass(frozen=True)
class Content:
    """What page and Markdown both say."""

    name: str
    head: Headline
    settings: list[tuple[str, str]]
    numbers: list[NumberRow]
    notes: tuple[str, ...]
    footer: str
    recorded: str = ""


def write_report(run: Run, out: Path, title: str | None = None, recorded: str = "") -> list[Path]:
    """Write report.png, report.md, metrics.csv and report.html to ``out``, each atomically; their paths, page last.

    Args:
        title: in the place of the run's name.
        recorded: what the page of single tokens beside the report shows, in words; empty when there is none.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = content_of(run, title, recorded)
    with atomic.replacing(out / "metrics.csv") as path:
        run.frame.to_csv(path, index_label="step", lineterminator="\n", encoding="utf-8")
    drawn = {
        "report.png": figure_png(run, content.head.sentence(), f"{content.name}  ·  {content.head.detail}"),
        "report.md": markdown(run, content).encode(),
        "report.html": html_page(run, content).encode(),
    }
    for name, data in drawn.items():
        atomic.write(out / name, data)
    return [out / name for name in ("metrics.csv", *drawn)]


def content_of(run: Run, title: str | None, recorded: str = "") -> Content:
    """The words and numbers of a report; arguments as in ``write_report``."""
    name, settings = title or run.name, settings_table(run.settings)
    return Content(name, headline(run), settings, number_rows(run), run.notes, _footer(run), recorded)


def html_page(run: Run, content: Content) -> str:
    """One self-contained page: style and drawings inside, no scripts, no references."""
    return PAGE.substitute(
        title=escape(f"{content.name}: {content.head.sentence()}"),
        style=STYLE,
        name=escape(content.name),
        headline=_headline_html(content.head),
        detail=escape(content.head.detail),
        recorded=_recorded_html(content.recorded),
        notes=_notes_html(content.notes),
        settings=_settings_html(content.settings),
        panels="\n".join(_panel_html(panel, run, content.numbers) for panel in panels_of(run)),
        numbers=_numbers_html(content.numbers),
        footer=escape(content.footer),
    )


def markdown(run: Run, content: Content) -> str:
    """The same report in Markdown, around report.png."""
    settings = md_table(("setting", "value"), content.settings, rule="---") if content.settings else NO_SETTINGS
    cells = [(row.label, *(row.cells or (NOT_LOGGED,) + ("",) * 3)) for row in content.numbers]
    notes = "\n".join(f"> {md(note)}  " for note in content.notes)
    parts = [
        f"# {md(content.head.sentence())}",
        f"{md(content.name)}. {md(content.head.detail)}",
        f"[{TOKENS}]({INSPECTOR}): {md(content.recorded)}." if content.recorded else "",
        notes,
        f"![{md(content.head.sentence())}: panels, described below](report.png)",
        "\n".join(_panel_md(panel, run, content.numbers) for panel in panels_of(run)),
        "## Settings",
        settings,
        "## Numbers",
        md_table(("metric", *NUMBER_HEADS), cells),
        f"{md(content.footer)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def alt_text(panel: Panel, rows: Sequence[NumberRow]) -> str:
    """The panel in words: first and last value of what it shows."""
    said = [
        f"{row.label} {row.cells[0]} to {row.cells[1]}" if row.cells else f"{row.label} {NOT_LOGGED}"
        for row in rows
        if row.panel == panel.key
    ]
    return f"{panel.title}, first to last value: {'; '.join(said)}."


def missing_metrics(panel: Panel, rows: Sequence[NumberRow]) -> str:
    """A sentence that names the panel's metrics that were not logged; empty when all were."""
    absent = [row.metric for row in rows if row.panel == panel.key and not row.cells]
    return f"{NOT_LOGGED.capitalize()}: {', '.join(absent)}." if absent else ""


def _headline_html(head: Headline) -> str:
    parts = [f'<span class="what">{escape(head.what)}</span>']
    if head.figures:
        *before, after = (escape(value) for value in head.figures)
        arrow = f' <span class="arrow" aria-hidden="true">{ARROW}</span><span class="aside"> to </span> '
        figures = [*(f'<span class="before">{value}</span>' for value in before), f"<span>{after}</span>"]
        parts.append(f'<span class="figures">{arrow.join(figures)}</span>')
    if head.span:
        parts.append(f'<span class="span">{escape(head.span)}</span>')
    return "\n".join(parts)


def _recorded_html(recorded: str) -> str:
    said = f'<a href="{INSPECTOR}">{TOKENS}</a>: {escape(recorded)}.'
    return f'<p class="detail">{said}</p>' if recorded else ""


def _notes_html(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes" aria-label="Notes on the log">{items}</ul>' if items else ""


def _settings_html(settings: Sequence[tuple[str, str]]) -> str:
    if not settings:
        return f'<p class="absent">{NO_SETTINGS}</p>'
    items = "\n".join(f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in settings)
    return f'<dl class="settings">\n{items}\n</dl>'


def _panel_html(panel: Panel, run: Run, rows: Sequence[NumberRow]) -> str:
    missing = missing_metrics(panel, rows)
    absent = f'<p class="absent">{escape(missing)}</p>' if missing else ""
    heading = f"<h3>{escape(panel.title)}</h3>"
    if not any(row.cells for row in rows if row.panel == panel.key):
        return f'<figure class="empty">\n{heading}\n<figcaption>{absent}</figcaption>\n</figure>'
    drawing = panel_svg(panel, run, alt_text(panel, rows))
    said = f"<p>{escape(panel.caption_for(run))}</p>"
    return f"<figure>\n{heading}\n{drawing}\n<figcaption>{said}{absent}</figcaption>\n</figure>"


def _numbers_html(rows: Sequence[NumberRow]) -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("metric", *NUMBER_HEADS))
    lines = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        cells = cells or f'<td class="absent" colspan="{len(NUMBER_HEADS)}">{NOT_LOGGED}</td>'
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>')
    body = "\n".join(lines)
    caption = "<caption>Over the logged steps; every step with every metric is in metrics.csv.</caption>"
    return f"<table>\n{caption}\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _footer(run: Run) -> str:
    steps = run.frame.index
    count = f"{len(steps)} step" + "s" * (len(steps) > 1)
    span = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
    points = steps_a_point(run)
    drawn = "Nothing is smoothed." if points == 1 else f"A drawn point is the mean of {points} steps, the table is not."
    sources = ", ".join(file.path.name for file in run.files)
    return f"{count} ({span}) from {sources}. {drawn} Written by cppo-verl {__version__}."


def _panel_md(panel: Panel, run: Run, rows: Sequence[NumberRow]) -> str:
    return f"- **{panel.title}.** {panel.caption_for(run)} {md(missing_metrics(panel, rows))}".rstrip()


def md(text: str) -> str:
    """Text that Markdown takes literally."""
    return "".join("\\" + letter if letter in "\\`*_[]<>#|" else letter for letter in text)


def md_table(heads: Sequence[str], rows: Sequence[Sequence[str]], rule: str = "---:") -> str:
    lines = [heads, ["---"] + [rule] * (len(heads) - 1), *([md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
