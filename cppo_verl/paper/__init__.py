"""The paper's settings and results as tables: Table 1 (scores), Table 3 (settings), Table 4 (scores by benchmark).

The CSV files beside this module hold the numbers as printed; ``collapse`` marks a run whose training broke down.
Scores are Avg@16 in percent.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

BENCHMARKS = ("aime24", "aime25", "aime26")
METHODS = ("GRPO", "MinPRO", "CISPO", "DPPO", "TRM-Max", "TRM-Avg", "CPPO")
COLLAPSE = "collapse"


@dataclass(frozen=True)
class Setting:
    """One row of Table 3; ``budget`` is ``fixed`` or ``quantile``, lengths are in tokens."""

    model: str
    prompts: int
    n: int
    minibatch: int
    updates: int
    max_response_tokens: int
    delta: float
    delta_b_min: float
    w_min: float
    budget: str


@dataclass(frozen=True)
class Score:
    """One row of Table 4; every score is None where the paper says that the run collapsed."""

    model: str
    t_stop: int
    method: str
    aime24: float | None
    aime25: float | None
    aime26: float | None
    avg: float | None


def rows(name: str) -> list[dict[str, str]]:
    """The rows of ``<name>.csv`` as printed in the paper."""
    with (files(__package__) / f"{name}.csv").open(encoding="utf-8") as table:
        return list(csv.DictReader(table))


def number(cell: str) -> float | None:
    """A score, or None for a run that collapsed."""
    return None if cell == COLLAPSE else float(cell)


@cache
def settings() -> dict[str, Setting]:
    """Table 3 by model name (``Qwen3-1.7B``, ...), in the paper's order."""
    fields = Setting.__dataclass_fields__
    return {
        row["model"]: Setting(**{key: fields[key].type(row[key]) for key in fields})  # type: ignore[operator]
        for row in rows("table3_config")
    }


@cache
def breakdown() -> tuple[Score, ...]:
    """Table 4: the scores of every (model, method) at its best step within ``t_stop``."""
    return tuple(
        Score(row["model"], int(row["t_stop"]), row["method"], *(number(row[key]) for key in (*BENCHMARKS, "avg")))
        for row in rows("table4_breakdown")
    )


@cache
def best_avg16() -> dict[str, dict[str, float | None]]:
    """Table 1: method -> column of the file (``qwen3_1p7b``, ...) -> best mean score."""
    return {
        row["method"]: {key: number(cell) for key, cell in row.items() if key != "method"}
        for row in rows("table1_best_avg16")
    }


@cache
def t_stop() -> dict[str, int]:
    """The last step that counts, by model name (Table 4)."""
    return {score.model: score.t_stop for score in breakdown()}
