"""Tables of scores: by hand, and written whatever the data files hold."""

import json

import pandas
import pytest

from cppo_verl.evaluation import problems, scoring, tables
from tests.evaluation.data import problem, response, row


def score(row: int, sample: int, acc: float | None, reward: float | None = None) -> scoring.Score:
    return scoring.Score(response(row, sample, tokens=10 * (sample + 1)), acc if reward is None else reward, acc)


def failed(row: int, sample: int) -> scoring.Score:
    return scoring.Score(response(row, sample), None, 0.0, error="raised")


def summary_of(rows, *scores) -> dict:
    return tables.summarise(tables.samples_of(rows, scores))


def test_summary_by_hand():
    rows = [problem(0), problem(1, question="2?"), problem(2, source="aime25")]
    summary = summary_of(rows, *(score(r, s, float(r != 1)) for r in range(3) for s in range(2)))
    found = summary["benchmarks"]["aime24"]
    assert (found["problems"], found["samples"], found["mean"], found["response_length"]) == (2, 4, 0.5, 15)
    assert found["standard_error"] == pytest.approx(0.5)  # means 1 and 0: sqrt((1/4 + 1/4) / 2)
    assert summary["mean"]["mean"] == 0.75
    assert summary["mean"]["standard_error"] is None  # aime25 has one problem
    assert summary["verl_metrics"] == {"val-core/aime24/acc/mean@2": 0.5, "val-core/aime25/acc/mean@2": 1.0}
    # repeated rows are one problem
    rows = [problem(number) for number in range(3)] + [problem(3, question="other")]
    found = summary_of(rows, *(score(r.row, 0, float(r.row == 3)) for r in rows))["benchmarks"]["aime24"]
    assert (found["problems"], found["rows"]) == (2, 4)
    # m = 1/4; residual sums -3/4 and 3/4; sqrt(2 * 2 * 9/16) / 4
    assert found["standard_error"] == pytest.approx(0.375)


def test_without_accuracy_the_reward_counts_where_there_is_one():
    summary = summary_of([problem()], score(0, 0, None, 0.25), score(0, 1, None, 0.75), failed(0, 2))
    found = summary["benchmarks"]["aime24"]
    assert (found["metric"], found["mean"], found["scoring_errors"]) == ("reward", 0.5, 1)
    assert summary["verl_metrics"] == {"val-core/aime24/reward/mean@3": 0.5}
    found = summary_of([problem()], score(0, 0, None, 0.25), score(0, 1, 1.0))["benchmarks"]["aime24"]
    assert (found["metric"], found["mean"]) == ("acc", 0.5)  # as verl counts, what has none is wrong


def test_what_cannot_be_scored_is_wrong_and_stands_in_the_console(tmp_path):
    rows = [problem()]
    samples = tables.samples_of(rows, [failed(0, 0), score(0, 1, 1.0)])
    summary = tables.summarise(samples)
    head, line, _ = tables.console(summary).splitlines()
    assert head.endswith("scoring errors")
    assert line.split() == ["aime24", "1", "2", "50.00", "-", "50.00", "0.0%", "1"]
    nothing = summary_of(rows, failed(0, 0))  # no reward at all: null in JSON, not NaN
    assert nothing["benchmarks"]["aime24"]["reward"] is None and nothing["mean"]["mean"] == 0
    tables.write(tmp_path, nothing, rows, tables.samples_of(rows, [failed(0, 0)]))
    assert json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["aime24"]["scoring_errors"] == 1


@pytest.mark.parametrize(
    ("given_", "written"), [([1, None], [1, None]), ([1, "b"], ["1", "b"]), (["half \ud800", None], ["half ?", None])]
)
def test_all_tables_whatever_the_data_files_hold(tmp_path, given_, written):
    rows = [problems.Problem(n, n, "aime24", row()["prompt"], n, {"index": i}) for n, i in enumerate(given_)]
    samples = tables.samples_of(rows, [score(r.row, s, float(s)) for r in rows for s in range(2)])
    paths = tables.write(tmp_path, tables.summarise(samples), rows, samples)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    table = pandas.read_parquet(tmp_path / "problems.parquet")
    assert [None if pandas.isna(i) else i for i in table["index"]] == written
    assert table["acc"].tolist() == [0.5, 0.5] and table["scoring_errors"].tolist() == [0, 0]
    csv = pandas.read_csv(tmp_path / "problems.csv")
    assert csv[["data_source", "number", "problem", "ground_truth", "samples", "response_length"]].values.tolist() == [
        ["aime24", n, "1+1?", n, 2, 15.0] for n in range(2)
    ]
    assert pandas.read_parquet(tmp_path / "samples.parquet")["acc"].tolist() == [0, 1, 0, 1]
