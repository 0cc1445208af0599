"""Writes the report over many runs: the paper's tables and figures, with ours in them, and one page that shows all."""

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cppo_verl import __version__, atomic
from cppo_verl.reporting import tables
from cppo_verl.reporting.curves import Panel, Picture, Style, pictures
from cppo_verl.reporting.labels import model_key
from cppo_verl.reporting.pictures import panel_drawing, picture_files
from cppo_verl.reporting.scores import Entry
from cppo_verl.reporting.study import Study
from cppo_verl.reporting.template import MANY_PAGE, MANY_STYLE

TITLE = "The paper's tables and figures, from our runs"


def write_many(study: Study, out: Path, title: str | None = None) -> list[Path]:
    """Write the tables (CSV, LaTeX), the figures (PNG, PDF) and report.html; their paths, page last.

    Each file is written atomically. Figures that an earlier report left in ``out`` stay there.
    """
    results = tables.results_of(study.entries)
    drawn = {model: pictures(study.entries, model, study.dumps) for model in _models(study)}
    texts = {
        "table1.csv": tables.table1_csv(results),
        "table4.csv": tables.table4_csv(results),
        "runs.csv": tables.runs_csv(study.entries),
        "table1.tex": tables.table1_latex(results),
        "table4.tex": tables.table4_latex(results),
    }
    (out / "figures").mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in texts.items():
        written.append(_write(out / name, text.encode()))
    for picture in (picture for made in drawn.values() for picture in made):
        for kind, data in picture_files(picture).items():
            written.append(_write(out / "figures" / f"{_file_name(picture)}.{kind}", data))
    page = html_page(study, results, drawn, title or TITLE)
    return [*written, _write(out / "report.html", page.encode())]


def html_page(study: Study, results: tables.Results, drawn: dict[str, list[Picture]], title: str) -> str:
    """One self-contained page: style and drawings inside, no scripts, no references outside it."""
    sections = {f"model-{_slug(model)}": (model, made) for model, made in drawn.items()}
    contents = {"table-1": "Table 1", "table-4": "Table 4"}
    contents |= {key: model for key, (model, _) in sections.items()} | {"runs": "Runs"}
    return MANY_PAGE.substitute(
        title=escape(title),
        style=MANY_STYLE,
        summary=escape(summary(study, results)),
        contents="".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in contents.items()),
        notes=_notes_html(study.notes),
        table1=tables.table1_html(results),
        table4=tables.table4_html(results),
        models="\n".join(_model_html(key, model, made) for key, (model, made) in sections.items()),
        runs=_runs_html(study.entries),
        footer=escape(f"{len(study.entries)} runs. Written by cppo-verl {__version__}."),
    )


def summary(study: Study, results: tables.Results) -> str:
    """How much of the tables there is, and how far it is from the paper."""
    cells = results.all()
    unscored = results.count("unscored")
    parts = [
        f"{len(study.entries)} runs. Of the {len(cells)} rows of the paper's Table 4, {results.count('scored')} are "
        f"scored, {results.count('collapse')} collapsed and {results.count('missing')} are missing"
        + (f"; with runs but no score: {unscored}." if unscored else ".")
    ]
    gaps = [gap for cell in cells if (gap := cell.difference("avg")) is not None]
    if gaps:
        mean = sum(map(abs, gaps)) / len(gaps)
        most = f", at most {_largest(gaps)}" if any(gaps) else ""
        parts.append(f"Ours differ from the paper's mean scores by {mean:.2f} points on average{most}.")
    unfinished = sum(cell.unfinished for cell in cells)
    if unfinished:
        parts.append(f"Rows whose runs have not reached T_stop: {unfinished}.")
    return " ".join(parts)


def _largest(gaps: Sequence[float]) -> str:
    return f"{max(gaps, key=abs):+.2f}".replace("-", "−")


def _models(study: Study) -> list[str]:
    """Models with something logged: the paper's in its order, then others."""
    logged = study.models()
    known = [model for model in tables.results_of(()).cells if model in logged]
    return known + [model for model in logged if model not in known]


def _model_html(key: str, model: str, made: Sequence[Picture]) -> str:
    body = "\n".join(_picture_html(picture) for picture in made)
    body = body or '<p class="absent">Nothing that the figures show was logged.</p>'
    return f'<section class="model" aria-labelledby="{key}">\n<h2 id="{key}">{escape(model)}</h2>\n{body}\n</section>'


def _picture_html(picture: Picture) -> str:
    legend = _legend_html(picture.styles) if picture.legend else ""
    panels = "\n".join(_panel_html(picture, panel) for panel in picture.panels)
    one = " one" if len(picture.panels) == 1 else ""
    lead = f'<h3>{escape(picture.heading)}</h3>\n<p class="caption">{escape(picture.caption)}</p>\n{legend}'
    return (
        f'<div class="picture{one}">\n<div class="lead">\n{lead}\n</div>\n'
        f'<div class="panels{one}">\n{panels}\n</div>\n</div>'
    )


def _panel_html(picture: Picture, panel: Panel) -> str:
    drawing = panel_drawing(panel, f"{_slug(picture.model)}-{panel.key}")
    legend = "" if picture.legend else _legend_html([(line.name, line.style) for line in panel.lines])
    unit = f" ({panel.unit})" if panel.unit and panel.log else ""
    return f"<figure>\n<h4>{escape(panel.title + unit)}</h4>\n{drawing}\n{legend}</figure>"


def _legend_html(styles: Sequence[tuple[str, Style]]) -> str:
    items = "".join(f"<li>{_swatch(style)}{escape(name)}</li>" for name, style in styles)
    return f'<ul class="legend">{items}</ul>'


def _swatch(style: Style) -> str:
    width = 2.4 if style.bold else 1.8
    pattern = "" if isinstance(style.dash, str) else " ".join(f"{width * part:g}" for part in style.dash[1])
    dashes = f' stroke-dasharray="{pattern}"' if pattern else ""
    line = f'<line x1="0" y1="5" x2="32" y2="5" stroke="{style.color}" stroke-width="{width}"{dashes}></line>'
    return f'<svg viewBox="0 0 32 10" aria-hidden="true">{line}</svg>'


def _runs_html(entries: Sequence[Entry]) -> str:
    heads = ("run", "model", "method", "seed", "last step", "best", "at step", "remarks")
    numeric = {"last step", "best", "at step"}
    head = "".join(f'<th scope="col"{_kind(name in numeric, name)}>{name}</th>' for name in heads)
    shown = _short_places([entry.place for entry in entries])
    body = "\n".join(_run_row(entry, place) for entry, place in zip(entries, shown, strict=True))
    caption = "Every run that was given, and what was read from it. Scores are in percent."
    return (
        '<div class="wide" role="region" tabindex="0" aria-label="Runs">\n<table class="runs">\n'
        f"<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _run_row(entry: Entry, place: str) -> str:
    score, label = entry.score, entry.label
    last = str(score.last_step) if entry.run is not None else "–"
    best = "–" if score.mean is None else f"{score.mean:.2f}"
    step = "–" if score.step is None else str(score.step)
    cells = [(label.model, ""), (label.method, ""), (label.seed or "–", "")]
    cells += [(text, ' class="number"') for text in (last, best, step)]
    cells += [("; ".join(tables.remarks(entry)), ' class="remarks"')]
    tds = "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in cells)
    return f'<tr><th scope="row">{escape(place)}</th>{tds}</tr>'


def _short_places(places: Sequence[str]) -> list[str]:
    """Paths without the directory that all of them are in."""
    absolute = [str(Path(place).resolve()) for place in places]
    if len(absolute) < 2:
        return [Path(place).name for place in absolute]
    above = os.path.commonpath(absolute)
    return [os.path.relpath(place, above) for place in absolute]


def _kind(number: bool, name: str) -> str:
    return ' class="number"' if number else ' class="remarks"' if name == "remarks" else ""


def _notes_html(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes" aria-label="Notes on the runs">{items}</ul>' if items else ""


def _file_name(picture: Picture) -> str:
    return f"{_slug(picture.model)}-{picture.key}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", model_key(text)).strip("-") or "model"


def _write(path: Path, data: bytes) -> Path:
    atomic.write(path, data)
    return path
