"""Data files: rows in order, and what cannot be evaluated."""

import json

import pytest

from cppo_verl.evaluation import EvaluationError, problems
from tests.evaluation.data import row, write


def test_numbers_rows_over_files_and_within_sources(tmp_path):
    first = write(tmp_path / "a.parquet", row(), row("aime25"), row(question="2?"))
    second = tmp_path / "b.jsonl"
    second.write_text(json.dumps(row("aime25", "3?", truth="1.50", extra_info={"index": 2})) + "\n")
    found = problems.read([first, second])
    assert [p.row for p in found] == [0, 1, 2, 3]
    assert [(p.data_source, p.number) for p in found] == [("aime24", 0), ("aime25", 0), ("aime24", 1), ("aime25", 1)]
    assert found[3].messages == [{"role": "user", "content": "3?"}]
    assert (found[3].ground_truth, found[3].extra_info, found[0].extra_info) == ("1.50", {"index": 2}, {})
    assert found[0].identity != found[2].identity
    assert found[3].place == f"{second}, row 1"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", {**row(), "prompt": "text"}, "row 1: is no row of verl's"),
        ("a.parquet", {**row(), "prompt": []}, "row 1: is no row"),
        ("a.parquet", {**row(), "reward_model": {"style": "rule"}}, "row 1: is no row"),
        ("a.parquet", row(extra_info="{}"), "row 1: is no row"),
        ("a.parquet", {"question": "1+1?", "answer": "2"}, "row 1: is no row .*question"),
        ("a.parquet", row(images=["x"]), "only text problems"),
        ("a.parquet", row(agent_name="tool_agent"), "only single_turn_agent"),
        ("a.parquet", b"PAR1 torn", "a.parquet cannot be read"),
        ("a.jsonl", b'1\n{"data_source"', "line 2: the last line is torn: copy"),
        ("a.jsonl", b"", "no rows in"),
        ("a.csv", b"x", "a.csv is not there, or none"),
        ("a.parquet", None, "a.parquet is not there"),
    ],
)
def test_rows_and_files_that_are_no_problems(tmp_path, name, content, said):
    if isinstance(content, dict):
        write(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=said):
        problems.read([tmp_path / name])


@pytest.mark.parametrize("truth", ["2024-01-01", "12:30:00", 12345678901234567890123, ["a\u2028b\u0085"]])
def test_json_lines_keep_what_was_written(tmp_path, truth):
    path = tmp_path / "a.jsonl"
    text = json.dumps(row(truth=truth, extra_info={"index": truth}), ensure_ascii=False)
    path.write_text(f"{text}\n{text}\n", encoding="utf-8", newline="")
    assert [repr(problem.ground_truth) for problem in problems.read([path])] == [repr(truth)] * 2
