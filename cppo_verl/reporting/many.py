"""Writes the report over many runs: the methods of each model side by side, the paper's tables and figures with ours in
them where one of its models is there, and one page that shows all."""

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from cppo_verl import __version__, atomic, paper
from cppo_verl.reporting import findings, tables
from cppo_verl.reporting.comparison import comparison_html
from cppo_verl.reporting.curves import Panel, Picture, Style, pictures
from cppo_verl.reporting.labels import model_key
from cppo_verl.reporting.outcomes import Comparison, check_baseline, compare
from cppo_verl.reporting.pictures import panel_drawing, picture_files
from cppo_verl.reporting.scores import Entry
from cppo_verl.reporting.study import Study
from cppo_verl.reporting.template import MANY_PAGE, MANY_STYLE

TITLE = "The paper's tables and figures, from our runs"
Comparisons = Mapping[str, Comparison]  # by model
ENOUGH_SEEDS = 2  # in common, from which the paper's models are compared pair by pair, too


def write_many(study: Study, compared: Comparisons, out: Path, title: str | None = None) -> list[Path]:
    """Write the tables (CSV, LaTeX, Markdown), the figures (PNG, PDF) and report.html; their paths, page last.

    The paper's tables are written when one of its models is among the runs. Each file is written atomically. What an
    earlier report left in ``out`` stays there.

    Args:
        compared: ``comparisons(study)``.
    """
    results = paper_results(study)
    drawn = {model: pictures(study.entries, model, study.dumps) for model in _models(study)}
    texts = {"runs.csv": tables.runs_csv(study.entries)}
    if results is not None:
        texts |= {
            "table1.csv": tables.table1_csv(results),
            "table4.csv": tables.table4_csv(results),
            "table1.tex": tables.table1_latex(results),
            "table4.tex": tables.table4_latex(results),
        }
    if compared:
        texts |= {
            "comparison.csv": findings.comparison_csv(list(compared.values())),
            "differences.csv": findings.differences_csv(list(compared.values())),
            "comparison.md": findings.comparison_markdown(list(compared.values())),
        }
    (out / "figures").mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in texts.items():
        written.append(_write(out / name, text.encode()))
    for picture in (picture for made in drawn.values() for picture in made):
        for kind, data in picture_files(picture).items():
            written.append(_write(out / "figures" / f"{_file_name(picture)}.{kind}", data))
    page = html_page(study, results, compared, drawn, title)
    return [*written, _write(out / "report.html", page.encode())]


def paper_results(study: Study) -> tables.Results | None:
    """The paper's tables with our runs in them; None where no run is of its models."""
    known = any(entry.label.model in paper.settings() for entry in study.entries)
    return tables.results_of(study.entries) if known else None


def comparisons(study: Study, baseline: str | None = None) -> Comparisons:
    """By model: all that are not the paper's, and of the paper's those with enough seeds in common.

    Raises:
        LabelError: no run is of the ``baseline`` method.
    """
    found = {model: compare(study.entries, model, baseline) for model in _models(study)}
    check_baseline(list(found.values()), baseline)
    return {
        model: comparison
        for model, comparison in found.items()
        if model not in paper.settings() or any(len(d.by_seed) >= ENOUGH_SEEDS for d in comparison.differences)
    }


def html_page(
    study: Study,
    results: tables.Results | None,
    compared: Comparisons,
    drawn: dict[str, list[Picture]],
    title: str | None,
) -> str:
    """One self-contained page: style and drawings inside, no scripts, no references outside it."""
    sections = {f"model-{_slug(model)}": (model, made) for model, made in drawn.items()}
    contents = {"table-1": "Table 1", "table-4": "Table 4"} if results is not None else {}
    contents |= {key: model for key, (model, _) in sections.items()} | {"runs": "Runs"}
    told = "".join(f'<p class="finding">{escape(text)}</p>' for text in summaries(study, compared))
    name = title or (TITLE if results is not None else _title(study))
    return MANY_PAGE.substitute(
        title=escape(name),
        style=MANY_STYLE,
        summary=told,
        contents="".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in contents.items()),
        notes=_notes_html(study.notes),
        tables=_paper_html(results) if results is not None else "",
        models="\n".join(_model_html(key, model, compared.get(model), made) for key, (model, made) in sections.items()),
        runs=_runs_html(study.entries),
        footer=escape(f"{_count(study)}. Written by cppo-verl {__version__}."),
    )


def summaries(study: Study, compared: Comparisons) -> list[str]:
    """What the page leads with: how much of the paper's tables there is, and what was found for each model."""
    results = paper_results(study)
    lead = [summary(study, results)] if results is not None else []
    return lead + [findings.sentence(comparison) for comparison in compared.values()]


def summary(study: Study, results: tables.Results) -> str:
    """How much of the tables there is, and how far it is from the paper."""
    cells = results.all()
    unscored = results.count("unscored")
    parts = [
        f"{_count(study)}. Of the {len(cells)} rows of the paper's Table 4, {results.count('scored')} are "
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


def _title(study: Study) -> str:
    models = _models(study)
    return f"{models[0]}: {_count(study)} side by side" if len(models) == 1 else f"{_count(study)} side by side"


def _count(study: Study) -> str:
    return f"{len(study.entries)} run{'s' * (len(study.entries) != 1)}"


def _largest(gaps: Sequence[float]) -> str:
    return f"{max(gaps, key=abs):+.2f}".replace("-", "−")


def _models(study: Study) -> list[str]:
    """Models with something logged: the paper's in its order, then others."""
    logged = study.models()
    known = [model for model in tables.results_of(()).cells if model in logged]
    return known + [model for model in logged if model not in known]


def _paper_html(results: tables.Results) -> str:
    parts = (
        ("table-1", "Table 1: best mean score", tables.table1_html(results)),
        ("table-4", "Table 4: by benchmark", tables.table4_html(results)),
    )
    return "\n".join(
        f'<section aria-labelledby="{key}">\n<h2 id="{key}">{heading}</h2>\n{body}\n</section>'
        for key, heading, body in parts
    )


def _model_html(key: str, model: str, compared: Comparison | None, made: Sequence[Picture]) -> str:
    body = "\n".join(_picture_html(picture) for picture in made)
    body = body or '<p class="absent">Nothing that the figures show was logged.</p>'
    if compared is not None:
        body = f"{comparison_html(compared)}\n{body}"
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
    caption = "Every run that was given, and what was read from it. Accuracies are in percent."
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
