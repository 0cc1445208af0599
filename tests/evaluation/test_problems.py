"""Data files: rows in order, values as they were written, and what cannot be evaluated."""

import json

import pytest

from cppo_verl.evaluation import EvaluationError, problems
from tests.evaluation.data import row, write


def test_numbers_rows_over_files_and_within_sources(tmp_path):
    first = write(tmp_path / "a.parquet", row(), row("aime25"), row(question="2?"))
    second = tmp_path / "b.jsonl"
    second.write_text(json.dumps(row("aime25", "3?")) + "\n")
    found = problems.read([first, second])
    assert [p.row for p in found] == [0, 1, 2, 3]
    assert [(p.data_source, p.number) for p in found] == [("aime24", 0), ("aime25", 0), ("aime24", 1), ("aime25", 1)]
    assert found[3].messages == [{"role": "user", "content": "3?"}]
    assert found[0].identity != found[2].identity
    assert found[3].place == f"{second}, row 1"


@pytest.mark.parametrize("truth", ["2024-01-01", "12:30:00", "1.50", 12345678901234567890123, 1.5, ["a\u2028b\u0085"]])
def test_json_lines_keep_what_was_written(tmp_path, truth):
    path = tmp_path / "a.jsonl"
    text = json.dumps(row(truth=truth, extra_info={"index": truth}), ensure_ascii=False)
    path.write_text(f"{text}\n\n{text}\n", encoding="utf-8", newline="")
    found = problems.read([path])
    assert [repr(p.ground_truth) for p in found] == [repr(truth)] * 2
    assert found[1].extra_info == {"index": truth}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({**row(), "prompt": "text"}, "row 1: prompt is no list"),
        ({**row(), "prompt": []}, "row 1: prompt is no list"),
        ({**row(), "reward_model": {"style": "rule"}}, "row 1: reward_model has no ground_truth"),
        ({**row(), "data_source": 3}, "row 1: data_source is 3"),
        (row(extra_info="{}"), "row 1: extra_info is str"),
        (row(images=["x"]), "only text problems"),
        (row(agent_name="tool_agent"), "only single_turn_agent"),
        ({"question": "1+1?", "answer": "2"}, "no column data_source, prompt, reward_model; it has question, answer"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_that_are_no_problems(tmp_path, bad, said, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        write(path, bad)
    else:
        path.write_text(json.dumps(bad))
    with pytest.raises(EvaluationError, match=said):
        problems.read([path])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", None, "does not exist"),
        ("a.parquet", b"PAR1 torn", "cannot be read"),
        ("a.csv", b"x", "must end in .parquet or .jsonl"),
        ("a.jsonl", b'1\n{"data_source"', "line 2: the last line is torn: copy the file again"),
        ("a.jsonl", b"{\n1\n", "line 1: not JSON"),
        ("a.jsonl", b"[1]\n", "row 1: has no column"),
        ("a.jsonl", b"", "no rows in"),
    ],
)
def test_files_that_are_no_data(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((EvaluationError, problems.jsonlines.LineError), match=said):
        problems.read([tmp_path / name])
