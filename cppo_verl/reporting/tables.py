"""Tables 1 and 4 of the paper with our scores in them: CSV, LaTeX, and what a cell of the page says.

The first columns of a CSV are the paper's own file, so the two can be compared cell by cell; what the paper does not
have (differences, seeds, steps) follows. Differences are between the numbers as printed.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from cppo_verl import paper
from cppo_verl.estimates import standard_error
from cppo_verl.reporting.labels import model_key
from cppo_verl.reporting.scores import COLLAPSE_RULE, Entry
from cppo_verl.reporting.text import csv_text

T_STOP, METHODS, COLUMNS = paper.t_stop(), paper.METHODS, (*paper.BENCHMARKS, "avg")
PAPERS = {(row.model, row.method): {name: getattr(row, name) for name in COLUMNS} for row in paper.breakdown()}
BENCHMARK_NAMES = {"aime24": "AIME24", "aime25": "AIME25", "aime26": "AIME26", "avg": "Mean"}
RULES = (
    "A score is the best unweighted mean of AIME24, AIME25 and AIME26 (Avg@16, percent) over the validated steps 1 to "
    "T_stop; its parts are those of that step. With several seeds: the mean of their scores ± its standard error "
    f"(number of seeds); collapsed seeds are counted, and not in the mean. {COLLAPSE_RULE}"
)
INSTEAD = {"missing": "missing", "unscored": "no score", "collapse": paper.COLLAPSE}  # what stands in place of a score


Cell = dict[str, Any]  # see ``cell_of``
Results = Mapping[str, Mapping[str, Cell]]  # model -> method -> cell


def results_of(entries: Sequence[Entry]) -> Results | None:
    """The 28 cells, whether there are runs for them or not; None where no run is of the paper's models."""
    if not any(entry.label.model in paper.settings() for entry in entries):
        return None
    results = {model: {method: cell_of(entries, model, method) for method in METHODS} for model in paper.settings()}
    for cells in results.values():
        best = max((cell["avg"]["mean"] for cell in cells.values() if cell["n"]), default=None)
        for cell in cells.values():
            cell["best"] = bool(cell["n"]) and cell["avg"]["mean"] == best
    return results


def cell_of(entries: Sequence[Entry], model: str, method: str) -> Cell:
    """What the runs of a model and method scored, beside the paper.

    ``state`` is ``scored``, ``collapse`` (every run), ``unscored`` (runs without a score) or ``missing`` (no run). Of
    the ``n`` runs that count, ``steps`` are the best ones, ``ends`` is the last of the shortest; ``flags`` say what
    numbers hide. By benchmark, and ``avg``: ``mean``, ``gap``, and as text score, error, the paper's and difference.
    """
    runs = [entry.score for entry in entries if (entry.label.model, entry.label.method) == (model, method)]
    counted = [score for score in runs if score.step is not None and score.collapsed_at is None]
    collapsed = sum(score.collapsed_at is not None for score in runs)
    steps = [score.step for score in counted if score.step is not None]
    ends = min((score.last_step for score in counted), default=None)
    unfinished = ends is not None and ends < T_STOP[model]  # a better step may still come
    flags = [f"so far, to step {ends}"] * unfinished + [f"{collapsed} of {len(runs)} collapsed"] * (collapsed > 0)
    cell: Cell = {
        "model": model, "method": method, "n": len(counted), "collapsed": collapsed, "ends": ends, "steps": steps,
        "state": "scored" if counted else "collapse" if collapsed else "unscored" if runs else "missing",
        "span": "–".join(dict.fromkeys(map(str, (min(steps), max(steps))))) if steps else "",
        "unfinished": unfinished, "flags": flags if counted else [],
    }  # fmt: skip
    for name, theirs in PAPERS[model, method].items():
        values = [score.best[name] for score in counted]
        mean, error = (fmean(values) if values else None), standard_error(values)
        gap = None if mean is None or theirs is None else round(round(mean, 2) - theirs, 2) + 0.0
        cell[name] = {
            "mean": mean,
            "text": INSTEAD[cell["state"]] if mean is None else f"{mean:.2f}",
            "error": "" if error is None else f"{error:.2f}",
            "paper": paper.COLLAPSE if theirs is None else f"{theirs:.2f}",
            "gap": gap,
            "difference": "" if gap is None else f"{gap:+.2f}",
        }
    return cell


def table1_csv(results: Results) -> str:
    """A row a method, a column a model; then for each model the paper's score, difference, standard error and n."""
    keys = [model_key(model) for model in results]
    heads = ["method", *keys, *(f"{k}_{name}" for k in keys for name in ("paper", "difference", "standard_error", "n"))]
    rows: list[list[object]] = []
    for method in METHODS:
        cells = [row[method] for row in results.values()]
        beside = [[*_beside(cell["avg"]), cell["n"]] for cell in cells]
        rows.append([method, *(cell["avg"]["text"] for cell in cells), *sum(beside, [])])
    return csv_text(heads, rows)


def table4_csv(results: Results) -> str:
    """A row a model and method: the paper's columns, then state, step, seeds, and the rest for each benchmark."""
    heads = ["model", "t_stop", "method", *COLUMNS, "state", "step", "n", "collapsed", "last_step"]
    heads += [f"{name}_{part}" for name in COLUMNS for part in ("paper", "difference", "standard_error")]
    rows: list[list[object]] = []
    for cell in (cell for cells in results.values() for cell in cells.values()):
        row = [cell["model"], T_STOP[cell["model"]], cell["method"], *(cell[name]["text"] for name in COLUMNS)]
        row += [cell["state"], " ".join(map(str, cell["steps"])), cell["n"], cell["collapsed"], cell["ends"]]
        rows.append(row + sum((_beside(cell[name]) for name in COLUMNS), []))
    return csv_text(heads, rows)


def _beside(score: Mapping[str, Any]) -> list[object]:
    return [score["paper"], score["difference"], score["error"]]


def runs_csv(entries: Sequence[Entry]) -> str:
    """A row a run: where it is, what it is, and what became of it."""
    heads = ["path", "model", "method", "seed", "last_step", "best_step", "best", "collapsed_at", "remarks"]
    rows = []
    for entry in entries:
        score, label = entry.score, entry.label
        best = f"{score.best['avg']:.2f}" if score.best else ""
        numbers = [score.last_step if len(entry.frame) else "", score.step, best, score.collapsed_at]
        rows.append([entry.place, label.model, label.method, label.seed, *numbers, "; ".join(entry.remarks())])
    return csv_text(heads, rows)
