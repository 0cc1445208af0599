"""Tables 1 and 4 of the paper with our scores in them: CSV, LaTeX, and what a cell of the page says.

The first columns of a CSV are the paper's own file, so the two can be compared cell by cell; what the paper does not
have (differences, seeds, steps) follows. Differences are between the numbers as printed.
"""

import sys
from collections.abc import Mapping, Sequence

from cppo_verl import paper
from cppo_verl.reporting.labels import model_key
from cppo_verl.reporting.scores import COLLAPSE_RULE, COLUMNS, Cell, Entry, cell_of
from cppo_verl.reporting.template import render
from cppo_verl.reporting.text import csv_text

MISSING = "missing"
T_STOP, METHODS = paper.t_stop(), paper.METHODS
BENCHMARK_NAMES = {"aime24": "AIME24", "aime25": "AIME25", "aime26": "AIME26", "avg": "Mean"}
COUNTING = (
    "A score is the best unweighted mean of AIME24, AIME25 and AIME26 (Avg@16, percent) over the validated steps 1 to "
    "T_stop; its parts are those of that step."
)
SEEDS = (
    "With several seeds: the mean of their scores ± its standard error (number of seeds); collapsed seeds are counted, "
    "and not in the mean."
)
RULES = f"{COUNTING} {SEEDS} {COLLAPSE_RULE}"

Results = Mapping[str, Mapping[str, Cell]]  # model -> method -> cell


def results_of(entries: Sequence[Entry]) -> Results | None:
    """The 28 cells, whether there are runs for them or not; None where no run is of the paper's models."""
    if not any(entry.label.model in paper.settings() for entry in entries):
        return None
    return {model: {method: cell_of(entries, model, method) for method in paper.METHODS} for model in paper.settings()}


def table1_csv(results: Results) -> str:
    """A row a method, a column a model; then for each model the paper's score, difference, standard error and n."""
    keys = [model_key(model) for model in results]
    heads = ["method", *keys, *(f"{k}_{name}" for k in keys for name in ("paper", "difference", "standard_error", "n"))]
    rows = []
    for method in paper.METHODS:
        cells = [results[model][method] for model in results]
        rows.append([method, *(score_text(c, "avg") for c in cells), *(x for c in cells for x in _extra(c, "avg"))])
    return csv_text(heads, rows)


def table4_csv(results: Results) -> str:
    """A row a model and method: the paper's columns, then state, step, seeds, and the rest for each benchmark."""
    heads = ["model", "t_stop", "method", *COLUMNS, "state", "step", "n", "collapsed", "last_step"]
    heads += [f"{name}_{part}" for name in COLUMNS for part in ("paper", "difference", "standard_error")]
    rows = []
    for cell in (cell for row in results.values() for cell in row.values()):
        n = cell.scores["avg"].n if cell.scores else 0
        fixed = [cell.state, " ".join(map(str, cell.steps)), n, cell.collapsed, cell.ends]
        more = [x for name in COLUMNS for x in _extra(cell, name)[:3]]
        scores = [score_text(cell, name) for name in COLUMNS]
        rows.append([cell.model, paper.t_stop()[cell.model], cell.method, *scores, *fixed, *more])
    return csv_text(heads, rows)


def latex(results: Results, table: int) -> str:
    """A booktabs table: ours, with the paper's score and the difference in small print below."""
    return render(f"table{table}.tex", results=results, tables=sys.modules[__name__])


def runs_csv(entries: Sequence[Entry]) -> str:
    """A row a run: where it is, what it is, and what became of it."""
    heads = ["path", "model", "method", "seed", "last_step", "best_step", "best", "collapsed_at", "remarks"]
    rows = []
    for entry in entries:
        score, label = entry.score, entry.label
        best = f"{score.best['avg']:.2f}" if score.best else ""
        numbers = [score.last_step if entry.run is not None else "", score.step, best, score.collapsed_at]
        rows.append([entry.place, label.model, label.method, label.seed, *numbers, "; ".join(entry.remarks())])
    return csv_text(heads, rows)


def score_text(cell: Cell, name: str) -> str:
    """The score to two decimals, or what is in its place."""
    shown = cell.shown(name)
    if shown is not None:
        return f"{shown:.2f}"
    return {"missing": MISSING, "unscored": "no score", "collapse": paper.COLLAPSE}.get(cell.state, "")


def steps_text(cell: Cell) -> str:
    """The best step, or the range of the seeds' best steps."""
    return "–".join(dict.fromkeys(str(pick(cell.steps)) for pick in (min, max))) if cell.steps else ""


def flags(cell: Cell) -> list[str]:
    """What the number alone would hide."""
    found = [f"so far, to step {cell.ends}"] if cell.unfinished else []
    if cell.state == "scored" and cell.collapsed:
        found.append(f"{cell.collapsed} of {cell.runs} collapsed")
    return found


def paper_text(cell: Cell, name: str) -> str:
    theirs = cell.paper.get(name)
    return paper.COLLAPSE if theirs is None else f"{theirs:.2f}"


def difference_text(cell: Cell, name: str) -> str:
    difference = cell.difference(name)
    return "" if difference is None else f"{difference:+.2f}"


def is_best(cell: Cell, cells: Mapping[str, Cell]) -> bool:
    """Whether it has the highest score of a model."""
    means = [x.scores["avg"].mean for x in cells.values() if x.scores]
    return bool(cell.scores) and cell.scores["avg"].mean == max(means)


def _extra(cell: Cell, name: str) -> list[str]:
    found = cell.scores.get(name)
    error = "" if found is None or found.error is None else f"{found.error:.2f}"
    return [paper_text(cell, name), difference_text(cell, name), error, str(found.n if found else 0)]
