"""The paper's Table 1 (scores), Table 3 (settings) and Table 4 (scores by benchmark): Avg@16 in percent.

The CSV files beside this module hold the numbers as printed; ``collapse`` marks a run whose training broke down.
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


def _rows(name: str) -> list[dict[str, str]]:
    with (files(__package__) / f"{name}.csv").open(encoding="utf-8") as table:
        return list(csv.DictReader(table))


def _number(cell: str) -> float | None:
    return None if cell == COLLAPSE else float(cell)


@cache
def settings() -> dict[str, Setting]:
    """Table 3 by model name (``Qwen3-1.7B``, ...), in the paper's order."""
    kinds = {name: field.type for name, field in Setting.__dataclass_fields__.items()}
    rows = _rows("table3_config")
    return {row["model"]: Setting(**{name: kinds[name](row[name]) for name in kinds}) for row in rows}  # type: ignore[operator]


@cache
def breakdown() -> tuple[Score, ...]:
    """Table 4: the scores of every (model, method) at its best step within ``t_stop``."""
    parts = (*BENCHMARKS, "avg")
    rows = _rows("table4_breakdown")
    return tuple(
        Score(row["model"], int(row["t_stop"]), row["method"], *(_number(row[name]) for name in parts)) for row in rows
    )


@cache
def best_avg16() -> dict[str, dict[str, float | None]]:
    """Table 1: method -> column of the file (``qwen3_1p7b``, ...) -> best mean score."""
    rows = _rows("table1_best_avg16")
    return {row.pop("method"): {model: _number(cell) for model, cell in row.items()} for row in rows}


@cache
def t_stop() -> dict[str, int]:
    """The last step that counts, by model name (Table 4)."""
    return {score.model: score.t_stop for score in breakdown()}
