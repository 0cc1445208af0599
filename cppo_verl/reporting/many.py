"""Writes the report over many runs: the methods of each model side by side, the paper's tables and figures with ours in
them where one of its models is there, and one page that shows all."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cppo_verl import atomic, paper
from cppo_verl.reporting import comparison, curves, pictures, tables
from cppo_verl.reporting.comparison import Comparison, compare
from cppo_verl.reporting.curves import Picture
from cppo_verl.reporting.labels import LabelError, model_key
from cppo_verl.reporting.plots import Line
from cppo_verl.reporting.study import Study
from cppo_verl.reporting.template import render
from cppo_verl.reporting.text import count, minus

TITLE = "The paper's tables and figures, from our runs"
Comparisons = Mapping[str, Comparison]  # by model
ENOUGH_SEEDS = 2  # in common, from which the paper's models are compared pair by pair, too
PANEL_INCHES, SINGLE_INCHES = (4.2, 3.3), (7.0, 4.2)


def write_many(study: Study, compared: Comparisons, out: Path, title: str | None = None) -> list[Path]:
    """Write the tables (CSV, LaTeX, Markdown; the paper's when one of its models is among the runs), the figures (PNG,
    PDF) and report.html, each atomically; their paths, page last. ``compared`` are ``comparisons(study)``."""
    results = tables.results_of(study.entries)
    drawn = {model: curves.pictures(study.entries, model) for model in study.models()}
    files: dict[str, str | bytes] = {"runs.csv": tables.runs_csv(study.entries)}
    if results is not None:
        files |= {"table1.csv": tables.table1_csv(results), "table4.csv": tables.table4_csv(results)}
        files |= {f"table{n}.tex": render(f"table{n}.tex", results=results, tables=tables) for n in (1, 4)}
    if compared:
        each = list(compared.values())
        files["comparison.csv"] = comparison.comparison_csv(each)
        files["differences.csv"] = comparison.differences_csv(each)
        files["comparison.md"] = render("comparison.md", comparisons=each, said=comparison)
    for picture in (picture for made in drawn.values() for picture in made):
        drawing = pictures.compose(
            picture.panels,
            f"{picture.model}: {picture.heading}",
            caption=picture.caption,
            columns=3,
            inches=PANEL_INCHES if len(picture.panels) > 1 else SINGLE_INCHES,
            legend=picture.legend,
        )
        for kind, data in drawing.items():
            files[f"figures/{_slug(picture.model)}-{picture.key}.{kind}"] = data
    files["report.html"] = html_page(study, results, compared, drawn, title)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        atomic.write(out / name, content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    return [out / name for name in files]


def comparisons(study: Study, baseline: str | None = None) -> Comparisons:
    """By model: all that are not the paper's, and of the paper's those with enough seeds in common; a LabelError where
    no run is of the ``baseline`` method."""
    found = {model: compare(study.entries, model, baseline) for model in study.models()}
    known = sorted({name for each in found.values() for name in each.by_method})
    if baseline is not None and baseline not in known:
        raise LabelError(f"--baseline {baseline}: no run is of that method. There are: {', '.join(known) or 'none'}.")
    return {
        model: each
        for model, each in found.items()
        if model not in paper.settings() or any(len(each.differences(x, "final")) >= ENOUGH_SEEDS for x in each.others)
    }


def html_page(
    study: Study, results: tables.Results | None, compared: Comparisons, drawn: Mapping[str, Sequence[Picture]],
    title: str | None,
) -> str:  # fmt: skip
    """One self-contained page: style and drawings inside, no scripts, no references outside it."""
    models, runs = study.models(), count(len(study.entries), "run")
    own = f"{models[0]}: {runs} side by side" if len(models) == 1 else f"{runs} side by side"
    places = [Path(entry.place).resolve() for entry in study.entries]
    above = os.path.commonpath(places) if len(places) > 1 else places[0].parent
    return render(
        "many.html",
        title=title or (TITLE if results is not None else own),
        lead=summaries(study, compared),
        notes=study.notes,
        models={f"model-{_slug(model)}": (model, compared.get(model), drawn[model]) for model in models},
        drawing=lambda model, panel: pictures.svg(panel, f"{_slug(model)}-{panel.key}", legends=False),
        swatch=_swatch,
        places=[os.path.relpath(place, above) for place in places],
        entries=study.entries,
        footer=f"{runs}.",
        said=comparison,
        tables=tables,
        results=results,
    )


def summaries(study: Study, compared: Comparisons) -> list[str]:
    """What the page leads with: how much of the paper's tables there is, and what was found for each model."""
    results = tables.results_of(study.entries)
    lead = [_summary(study, results)] if results is not None else []
    return lead + [each.sentence() for each in compared.values()]


def _summary(study: Study, results: tables.Results) -> str:
    cells = [cell for row in results.values() for cell in row.values()]
    of = Counter(cell["state"] for cell in cells)
    said = f"{count(len(study.entries), 'run')}. Of the {len(cells)} rows of the paper's Table 4, {of['scored']} are "
    said += f"scored, {of['collapse']} collapsed, {of['unscored']} without a score and {of['missing']} missing."
    if gaps := [cell["avg"]["gap"] for cell in cells if cell["avg"]["gap"] is not None]:
        mean, most = sum(map(abs, gaps)) / len(gaps), minus(f"{max(gaps, key=abs):+.2f}")
        said += f" Ours differ from the paper's mean scores by {mean:.2f} points on average, at most {most}."
    unfinished = sum(cell["unfinished"] for cell in cells)
    return said + (f" Rows whose runs have not reached T_stop: {unfinished}." if unfinished else "")


def _swatch(line: Line) -> dict[str, Any]:
    width = 2.4 if line.width >= curves.BOLD_WIDTH else 1.8
    dashes = "" if isinstance(line.dash, str) else " ".join(f"{width * part:g}" for part in line.dash[1])
    return {"color": line.color, "width": width, "dashes": dashes}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", model_key(text)).strip("-") or "model"
