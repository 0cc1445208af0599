"""Scores to tables: one row a sample, one a problem, one a benchmark."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas

from cppo_verl import atomic, estimates
from cppo_verl.atomic import writable
from cppo_verl.evaluation.problems import Problem
from cppo_verl.evaluation.scoring import Score

MEAN = "mean"
KEYS = ["row", "cluster"]  # of the samples, for grouping; not written


def samples_of(problems: Sequence[Problem], scores: Iterable[Score]) -> pandas.DataFrame:
    """One row a sample, in the order of ``scores``, with the response itself.

    ``cluster`` is equal for samples of one problem, also where the data files repeat it.
    """
    rows = []
    for score in scores:
        problem, response = problems[score.response.row], score.response
        row = {"row": problem.row, "cluster": problem.identity, "data_source": problem.data_source}
        row |= {"number": problem.number, "sample": response.sample, "response": response.text}
        row |= {"tokens": response.tokens, "finish_reason": response.finish_reason}
        rows.append(row | {name: getattr(score, name) for name in ("reward", "acc", "pred", "error")})
    return pandas.DataFrame(rows).astype({"reward": float, "acc": float})


def summarise(samples: pandas.DataFrame) -> dict[str, Any]:
    """Per benchmark and over benchmarks.

    Returns:
        ``benchmarks`` (by data source: metric, problems, rows, samples, mean, standard_error, sampling_error,
        reward, response_length, truncated, scoring_errors), ``mean`` (unweighted over benchmarks: the three numbers)
        and ``verl_metrics`` (the same means under the names of verl's logger).
    """
    benchmarks, estimated, names = {}, [], {}
    for source, own in samples.groupby("data_source", sort=False):
        # verl's choice: accuracy where the scorer gives it for any sample, the reward elsewhere. And as verl counts: a
        # missing accuracy is a wrong answer, a missing reward is left out.
        metric = "reward" if own["acc"][own["error"].isna()].isna().all() and own["reward"].notna().any() else "acc"
        values = own["acc"].fillna(0.0) if metric == "acc" else own["reward"].dropna()
        clusters = values.groupby(own["cluster"], sort=False)
        estimate = estimates.clustered([list(cluster) for _, cluster in clusters])
        counts = {"problems": own["cluster"].nunique(), "rows": own["row"].nunique(), "samples": len(own)}
        benchmarks[source] = {"metric": metric, **asdict(estimate), **counts, **_facts(own)}
        first = int((own["row"] == own["row"].iloc[0]).sum())
        names[f"val-core/{source}/{metric}/mean@{first}"] = estimate.mean
        estimated.append(estimate)
    return {"benchmarks": benchmarks, MEAN: asdict(estimates.unweighted_mean(estimated)), "verl_metrics": names}


def problem_table(problems: Sequence[Problem], samples: pandas.DataFrame) -> pandas.DataFrame:
    """One row a problem row: mean accuracy and reward over its samples, lengths in tokens, share cut off."""
    rows, index = [], [problem.extra_info.get("index") for problem in problems]
    whole = all(value is None or (type(value) is int and abs(value) < 2**63) for value in index)
    for number, own in samples.groupby("row"):
        problem = problems[number]
        known = index[number] if whole or index[number] is None else writable(str(index[number]))
        row = {"data_source": problem.data_source, "number": problem.number, "index": known}
        row |= {"problem": writable(str(problem.messages[-1].get("content")))}
        row |= {"ground_truth": writable(str(problem.ground_truth)), "samples": len(own), "acc": _mean(own["acc"])}
        rows.append(row | _facts(own))
    return pandas.DataFrame(rows).astype({"acc": float, "reward": float} | ({"index": "Int64"} if whole else {}))


def _facts(samples: pandas.DataFrame) -> dict[str, Any]:
    return {
        "reward": _mean(samples["reward"]),
        "response_length": _mean(samples["tokens"]),
        "truncated": _mean(samples["finish_reason"] == "length"),
        "scoring_errors": int(samples["error"].notna().sum()),
    }


def _mean(values: pandas.Series) -> float | None:
    """None where no value is known, for JSON."""
    mean = values.mean()
    return None if pandas.isna(mean) else float(mean)


def write(out: Path, summary: Mapping[str, Any], problems: Sequence[Problem], samples: pandas.DataFrame) -> list[Path]:
    """Write summary.json, problems.csv, problems.parquet and samples.parquet into ``out``, each atomically."""
    table = problem_table(problems, samples)
    with atomic.replacing(out / "problems.csv") as path:
        table.to_csv(path, index=False)
    for name, frame in (("problems", table), ("samples", samples.drop(columns=KEYS))):
        with atomic.replacing(out / f"{name}.parquet") as path:
            frame.to_parquet(path, index=False)
    atomic.write(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return [out / name for name in ("problems.csv", "problems.parquet", "samples.parquet", "summary.json")]


def console(summary: Mapping[str, Any]) -> str:
    """The benchmarks and their mean, in percent for accuracies, as text."""
    rows: list[tuple[str, ...]] = [
        ("benchmark", "problems", "samples", "score", "std error", "sampling only", "cut off", "scoring errors")
    ]
    for name, found in summary["benchmarks"].items():
        counts = (str(found["problems"]), str(found["samples"]))
        ends = (f"{100 * found['truncated']:.1f}%", str(found["scoring_errors"]))
        rows.append((name, *counts, *_numbers(found, 100 if found["metric"] == "acc" else 1), *ends))
    metrics = {found["metric"] for found in summary["benchmarks"].values()}
    rows.append((MEAN, "", "", *_numbers(summary[MEAN], 100 if metrics == {"acc"} else 1), "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _numbers(found: Mapping[str, Any], scale: int) -> list[str]:
    values = [found[key] for key in ("mean", "standard_error", "sampling_error")]
    return ["-" if value is None else f"{scale * value:.2f}" for value in values]
