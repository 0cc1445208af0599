"""Scores to tables: one row a sample, one a problem, one a benchmark."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas

from cppo_verl import atomic
from cppo_verl.evaluation import estimates
from cppo_verl.evaluation.problems import Problem
from cppo_verl.evaluation.scoring import Score

MEAN = "mean"


def summarise(problems: Sequence[Problem], scores: Mapping[int, Sequence[Score]]) -> dict[str, Any]:
    """Per benchmark and over benchmarks.

    Args:
        problems: rows of the data files.
        scores: per row, the scores of its samples.

    Returns:
        ``benchmarks`` (by data source: metric, problems, rows, samples, mean, standard_error, sampling_error,
        reward, response_length, truncated, scoring_errors), ``mean`` (unweighted over benchmarks: the three numbers)
        and ``verl_metrics`` (the same means under the names of verl's logger).
    """
    sources = list(dict.fromkeys(p.data_source for p in problems))
    benchmarks, estimated, names = {}, [], {}
    for source in sources:
        own = [p for p in problems if p.data_source == source]
        metric = _metric(own, scores)
        estimate = estimates.clustered(_clusters(own, scores, metric))
        estimated.append(estimate)
        benchmarks[source] = {"metric": metric, **asdict(estimate), **_counts(own, scores)}
        names[f"val-core/{source}/{metric}/mean@{len(scores[own[0].row])}"] = estimate.mean
    return {
        "benchmarks": benchmarks,
        MEAN: asdict(estimates.unweighted_mean(estimated)),
        "verl_metrics": names,
    }


def problem_table(problems: Sequence[Problem], scores: Mapping[int, Sequence[Score]]) -> pandas.DataFrame:
    """One row a problem row: mean accuracy and reward over its samples, lengths in tokens, share cut off."""
    return pandas.DataFrame(
        [
            {
                "data_source": problem.data_source,
                "number": problem.number,
                "index": problem.extra_info.get("index"),
                "problem": str(problem.messages[-1].get("content")),
                "ground_truth": str(problem.ground_truth),
                "samples": len(own),
                "acc": _mean([s.acc for s in own]),
                "reward": _mean([s.reward for s in own]),
                "response_length": _mean([s.response.tokens for s in own]),
                "truncated": _mean([s.response.finish_reason == "length" for s in own]),
                "scoring_errors": sum(s.error is not None for s in own),
            }
            for problem in problems
            for own in [scores[problem.row]]
        ]
    )


def sample_table(problems: Sequence[Problem], scores: Mapping[int, Sequence[Score]]) -> pandas.DataFrame:
    """One row a sample, with the response itself."""
    return pandas.DataFrame(
        [
            {
                "data_source": problem.data_source,
                "number": problem.number,
                "sample": score.response.sample,
                "response": score.response.text,
                "tokens": score.response.tokens,
                "finish_reason": score.response.finish_reason,
                "reward": score.reward,
                "acc": score.acc,
                "pred": score.pred,
                "error": score.error,
            }
            for problem in problems
            for score in scores[problem.row]
        ]
    )


def write(
    out: Path, summary: Mapping[str, Any], problems: Sequence[Problem], scores: Mapping[int, Sequence[Score]]
) -> list[Path]:
    """Write summary.json, problems.csv, problems.parquet and samples.parquet into ``out``, each atomically."""
    table, samples = problem_table(problems, scores), sample_table(problems, scores)
    text = json.dumps(summary, indent=2) + "\n"
    writers: dict[str, Any] = {
        "problems.csv": lambda path: table.to_csv(path, index=False),
        "problems.parquet": lambda path: table.to_parquet(path, index=False),
        "samples.parquet": lambda path: samples.to_parquet(path, index=False),
        "summary.json": lambda path: path.write_text(text),
    }
    for name, fill in writers.items():
        with atomic.replacing(out / name) as path:
            fill(path)
    return [out / name for name in writers]


def console(summary: Mapping[str, Any]) -> str:
    """The benchmarks and their mean, in percent for accuracies, as text."""
    rows: list[tuple[str, ...]] = [
        ("benchmark", "problems", "samples", "score", "std error", "sampling only", "cut off")
    ]
    for name, found in summary["benchmarks"].items():
        counts = (str(found["problems"]), str(found["samples"]))
        numbers = _numbers(found, 100 if found["metric"] == "acc" else 1)
        rows.append((name, *counts, *numbers, f"{100 * found['truncated']:.1f}%"))
    metrics = {found["metric"] for found in summary["benchmarks"].values()}
    rows.append((MEAN, "", "", *_numbers(summary[MEAN], 100 if metrics == {"acc"} else 1), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _numbers(found: Mapping[str, Any], scale: int) -> tuple[str, ...]:
    values = [found[key] for key in ("mean", "standard_error", "sampling_error")]
    return tuple("-" if value is None else f"{scale * value:.2f}" for value in values)


def _metric(problems: Sequence[Problem], scores: Mapping[int, Sequence[Score]]) -> str:
    """verl's choice: accuracy where the scorer gives it for any sample, the reward elsewhere."""
    given = any(s.acc is not None and s.error is None for p in problems for s in scores[p.row])
    rewarded = any(s.reward is not None for p in problems for s in scores[p.row])
    return "acc" if given or not rewarded else "reward"


def _clusters(problems: Sequence[Problem], scores: Mapping[int, Sequence[Score]], metric: str) -> list[list[float]]:
    """As verl counts: a missing accuracy is a wrong answer, a missing reward is left out."""
    found: dict[str, list[float]] = {}
    for problem in problems:
        values = [s.acc or 0.0 if metric == "acc" else s.reward for s in scores[problem.row]]
        found.setdefault(problem.identity, []).extend(value for value in values if value is not None)
    return [values for values in found.values() if values]


def _counts(problems: Sequence[Problem], scores: Mapping[int, Sequence[Score]]) -> dict[str, Any]:
    own = [score for problem in problems for score in scores[problem.row]]
    return {
        "problems": len({p.identity for p in problems}),
        "rows": len(problems),
        "samples": len(own),
        "reward": _mean([s.reward for s in own]),
        "response_length": _mean([s.response.tokens for s in own]),
        "truncated": _mean([s.response.finish_reason == "length" for s in own]),
        "scoring_errors": sum(s.error is not None for s in own),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known) / len(known)) if known else None
