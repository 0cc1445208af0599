"""Tables 1 and 4 of the paper with our scores in them: CSV, LaTeX and HTML.

The first columns of a CSV are the paper's own file, so the two can be compared cell by cell; what the paper does not
have (differences, seeds, steps) follows. Differences are between the numbers as printed.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO

from cppo_verl import paper
from cppo_verl.reporting.labels import model_key
from cppo_verl.reporting.scores import COLLAPSE_RULE, Cell, Entry, Estimate, cells_of

MISSING = "missing"
BENCHMARK_NAMES = {"aime24": "AIME24", "aime25": "AIME25", "aime26": "AIME26", "avg": "Mean"}
COLUMNS = (*paper.BENCHMARKS, "avg")

COUNTING = (
    "A score is the best unweighted mean of AIME24, AIME25 and AIME26 (Avg@16, percent) over the validated steps 1 to "
    "T_stop; its parts are those of that step."
)
SEEDS = (
    "With several seeds: the mean of their scores ± its standard error (number of seeds); collapsed seeds are counted, "
    "and not in the mean."
)


@dataclass(frozen=True)
class Results:
    """Cells of the paper's models: model -> method -> cell."""

    cells: Mapping[str, Mapping[str, Cell]]

    def count(self, *states: str) -> int:
        return sum(cell.state in states for row in self.cells.values() for cell in row.values())

    def all(self) -> list[Cell]:
        return [cell for row in self.cells.values() for cell in row.values()]


def results_of(entries: Sequence[Entry]) -> Results:
    """The 28 cells, whether there are runs for them or not."""
    return Results(
        {model: {cell.method: cell for cell in cells_of(entries, model, paper.METHODS)} for model in paper.settings()}
    )


def table1_csv(results: Results) -> str:
    """A row a method, a column a model; then for each model the paper's score, difference, standard error and n."""
    keys = {model: model_key(model) for model in results.cells}
    extra = ("paper", "difference", "standard_error", "n")
    heads = ["method", *keys.values(), *(f"{key}_{name}" for key in keys.values() for name in extra)]
    rows = []
    for method in paper.METHODS:
        cells = [results.cells[model][method] for model in keys]
        rows.append([method, *(score_text(c, "avg") for c in cells), *(x for c in cells for x in _extra(c, "avg"))])
    return csv_text([heads, *rows])


def table4_csv(results: Results) -> str:
    """A row a model and method: the paper's columns, then state, step, seeds, and the rest for each benchmark."""
    extra = ("paper", "difference", "standard_error")
    heads = ["model", "t_stop", "method", *COLUMNS, "state", "step", "n", "collapsed", "last_step"]
    heads += [f"{name}_{part}" for name in COLUMNS for part in extra]
    rows = []
    for cell in results.all():
        n = cell.scores["avg"].n if cell.scores else 0
        fixed = [cell.state, " ".join(map(str, cell.steps)), n, cell.collapsed, _blank(cell.ends)]
        more = [x for name in COLUMNS for x in _extra(cell, name)[:3]]
        scores = [score_text(cell, name) for name in COLUMNS]
        rows.append([cell.model, paper.t_stop()[cell.model], cell.method, *scores, *fixed, *more])
    return csv_text([heads, *rows])


def runs_csv(entries: Sequence[Entry]) -> str:
    """A row a run: where it is, what it is, and what became of it."""
    heads = ["path", "model", "method", "seed", "last_step", "best_step", "best", "collapsed_at", "remarks"]
    rows = []
    for entry in entries:
        score, label = entry.score, entry.label
        best = "" if score.mean is None else f"{score.mean:.2f}"
        last = score.last_step if entry.run is not None else ""
        numbers = [last, _blank(score.step), best, _blank(score.collapsed_at)]
        rows.append([entry.place, label.model, label.method, label.seed, *numbers, "; ".join(remarks(entry))])
    return csv_text([heads, *rows])


def remarks(entry: Entry) -> list[str]:
    """What a reader should know of a run."""
    said = [entry.score.collapse, entry.score.absent, *entry.score.notes, *entry.notes]
    return [text for text in said if text]


def table1_latex(results: Results) -> str:
    """A booktabs table: ours, with the paper's score and the difference in small print below."""
    models = list(results.cells)
    lines = [r"\begin{tabular}{l" + "c" * len(models) + "}", r"\toprule"]
    lines += [" & ".join(["Method", *map(_tex, models)]) + r" \\", r"\midrule"]
    for method in paper.METHODS:
        cells = [results.cells[model][method] for model in models]
        top = [_tex_score(cell, "avg", cell.method == _best(results.cells[cell.model])) for cell in cells]
        lines.append(" & ".join([_tex(method), *top]) + r" \\")
        lines.append(" & ".join(["", *(rf"{{\scriptsize {_tex_beside(cell, 'avg')}}}" for cell in cells)]) + r" \\")
    return _latex(lines, f"{COUNTING} {SEEDS} {COLLAPSE_RULE}")


def table4_latex(results: Results) -> str:
    """The scores by benchmark, a block a model."""
    lines = [r"\begin{tabular}{ll" + "c" * len(COLUMNS) + "r}", r"\toprule"]
    lines += [" & ".join(["", "Method", *BENCHMARK_NAMES.values(), "Step"]) + r" \\"]
    for model, cells in results.cells.items():
        stop = paper.t_stop()[model]
        heading = rf"\multicolumn{{{len(COLUMNS) + 3}}}{{l}}{{{_tex(model)}, $T_{{\mathrm{{stop}}}} = {stop}$}}"
        lines += [r"\midrule", heading + r" \\"]
        for method, cell in cells.items():
            bold = method == _best(cells)
            top = [_tex_score(cell, name, bold and name == "avg") for name in COLUMNS]
            lines.append(" & ".join(["", _tex(method), *top, steps_text(cell)]) + r" \\")
            below = (rf"{{\scriptsize {_tex_beside(cell, name)}}}" for name in COLUMNS)
            lines.append(" & ".join(["", "", *below, ""]) + r" \\")
    return _latex(lines, f"{COUNTING} {SEEDS} {COLLAPSE_RULE}")


def table1_html(results: Results) -> str:
    """Methods down, models across."""
    heads = "".join(f'<th scope="col">{escape(model)}</th>' for model in results.cells)
    lines = []
    for method in paper.METHODS:
        cells = (results.cells[model][method] for model in results.cells)
        tds = "".join(_td(cell, "avg", method == _best(results.cells[cell.model])) for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(method)}</th>{tds}</tr>')
    caption = f"Ours in large print, the paper's and the difference below it. {COUNTING} {SEEDS} {COLLAPSE_RULE}"
    head = f'<thead><tr><th scope="col">Method</th>{heads}</tr></thead>'
    return _html(caption, head, ["<tbody>", *lines, "</tbody>"], "Table 1")


def table4_html(results: Results) -> str:
    """Methods down in a block a model, benchmarks across."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in BENCHMARK_NAMES.values())
    lines = []
    for model, cells in results.cells.items():
        title = f"{escape(model)}, T_stop = {paper.t_stop()[model]}"
        span = len(COLUMNS) + 2
        lines.append(f'<tbody><tr class="block"><th scope="rowgroup" colspan="{span}">{title}</th></tr>')
        for method, cell in cells.items():
            tds = "".join(_td(cell, name, name == "avg" and method == _best(cells), False) for name in COLUMNS)
            state = steps_text(cell) or score_text(cell, "avg")
            step = f'<td class="step {cell.state}"><span>{escape(state)}</span></td>'
            lines.append(f'<tr><th scope="row">{escape(method)}</th>{tds}{step}</tr>')
        lines.append("</tbody>")
    caption = "As in Table 1, by benchmark, with the step of the best mean; below ours the paper's and the difference."
    head = f'<thead><tr><th scope="col">Method</th>{heads}<th scope="col">Step</th></tr></thead>'
    return _html(caption, head, lines, "Table 4", " by-benchmark")


def score_text(cell: Cell, name: str) -> str:
    """The score to two decimals, or what is in its place."""
    shown = cell.shown(name)
    if shown is not None:
        return f"{shown:.2f}"
    return {"missing": MISSING, "unscored": "no score", "collapse": paper.COLLAPSE}.get(cell.state, "")


def steps_text(cell: Cell) -> str:
    """The best step, or the range of the seeds' best steps."""
    if not cell.steps:
        return ""
    low, high = min(cell.steps), max(cell.steps)
    return str(low) if low == high else f"{low}–{high}"


def spread_text(found: Estimate) -> str:
    """``± 0.31 (3)`` for three seeds, nothing for one."""
    return "" if found.error is None else f"± {found.error:.2f} ({found.n})"


def flags(cell: Cell) -> list[str]:
    """What the number alone would hide."""
    found = [f"so far, to step {cell.ends}"] if cell.unfinished else []
    if cell.state == "scored" and cell.collapsed:
        found.append(f"{cell.collapsed} of {cell.runs} collapsed")
    return found


def _best(cells: Mapping[str, Cell]) -> str | None:
    """The method with the highest score of a model."""
    scored = {method: cell.scores["avg"].mean for method, cell in cells.items() if cell.scores}
    return max(scored, key=lambda method: scored[method]) if scored else None


def _extra(cell: Cell, name: str) -> list[str]:
    found = cell.scores.get(name)
    error = "" if found is None or found.error is None else f"{found.error:.2f}"
    return [_paper_text(cell, name), _difference_text(cell, name), error, str(found.n if found else 0)]


def _paper_text(cell: Cell, name: str) -> str:
    theirs = cell.paper.get(name)
    return paper.COLLAPSE if theirs is None else f"{theirs:.2f}"


def _difference_text(cell: Cell, name: str) -> str:
    difference = cell.difference(name)
    return "" if difference is None else f"{difference:+.2f}"


def _td(cell: Cell, name: str, best: bool, say_state: bool = True) -> str:
    """A cell of a table: ours, its spread, and the paper's below. Without a score its state, when ``say_state``."""
    text = escape(score_text(cell, name)) if name in cell.scores or say_state else ""
    shown = f"<strong>{text}</strong>" if best and cell.state == "scored" else text
    small = [spread_text(cell.scores[name])] if name in cell.scores else []
    small += flags(cell) if name == "avg" else []
    notes = "".join(f"<small>{escape(text)}</small>" for text in small if text)
    difference = _difference_text(cell, name).replace("-", "−")
    beside = f'<i class="word">paper </i>{_paper_text(cell, name)}' + (f" <i>{difference}</i>" if difference else "")
    ours = f"<span>{shown}</span>" if shown else ""
    return f'<td class="score {cell.state}">{ours}{notes}<small>{beside}</small></td>'


def _html(caption: str, head: str, body: Sequence[str], name: str, kind: str = "") -> str:
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{name}">\n<table class="scores{kind}">\n'
        f"<caption>{escape(caption)}</caption>\n{head}\n" + "\n".join(body) + "\n</table>\n</div>"
    )


def _tex_score(cell: Cell, name: str, bold: bool) -> str:
    shown = cell.shown(name)
    if shown is None:
        return rf"\textit{{{_tex(score_text(cell, name))}}}"
    text = rf"\textbf{{{shown:.2f}}}" if bold else f"{shown:.2f}"
    error = cell.scores[name].error
    return text if error is None else text + rf" {{\scriptsize $\pm$ {error:.2f} ({cell.scores[name].n})}}"


def _tex_beside(cell: Cell, name: str) -> str:
    difference = _difference_text(cell, name)
    marks = [f"{_paper_text(cell, name)}", f"${difference}$" if difference else "", *map(_tex, flags(cell))]
    return ", ".join(mark for mark in marks if mark)


def _latex(lines: Sequence[str], note: str) -> str:
    comment = [f"% {note}", r"% Below each score: the paper's, and the difference. Needs \usepackage{booktabs}."]
    return "\n".join([*comment, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    """Text that LaTeX takes literally."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    return "".join(special.get(letter) or ("\\" + letter if letter in "&%$#_{}" else letter) for letter in text)


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _blank(value: object) -> object:
    return "" if value is None else value
