"""The arithmetic data: hand-worked solutions, the paper's scorer's verdict on them, splits, files."""

from itertools import product
from pathlib import Path

import pandas
import pytest

from data_prep import arithmetic, math_reward, storage
from data_prep.arithmetic import Arguments, partial_results, solution_text
from data_prep.arithmetic_reward import compute_score

SMALL = Arguments(train=300, val=60, seed=3)
FILES = ["train.parquet", "val.parquet", "manifest.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arithmetic")
    assert arithmetic.prepare(out, SMALL)
    return out


def test_solution_worked_by_hand():
    assert partial_results("3+4-2+1") == [7, 5, 6]
    assert arithmetic.reference_solution("3+4-2+1") == "3+4=7\n7-2=5\n5+1=6\nAnswer: 6"
    # An error in the first line is carried through the rest.
    assert solution_text("3+4-2+1", [8, 6, 7]) == "3+4=8\n8-2=6\n6+1=7\nAnswer: 7"


def test_numbering_agrees_with_brute_force():
    moves = [f"{sign}{digit}" for sign, digit in product("+-", range(1, 10))]
    everything = [f"{first}{one}{other}" for first in range(1, 10) for one, other in product(moves, moves)]
    allowed = [text for text in everything if all(0 <= value <= 9 for value in partial_results(text))]
    assert [arithmetic.expression_at(index, 3) for index in range(9**3)] == allowed


def test_rows_have_verls_columns_and_solutions_that_both_scorers_take(folder: Path):
    expressions = set()
    for split, size in (("train", SMALL.train), ("val", SMALL.val)):
        rows = pandas.read_parquet(folder / f"{split}.parquet").to_dict("records")
        for index, row in enumerate(rows):
            expression, solution = row["extra_info"]["expression"], row["extra_info"]["solution"]
            truth = str(eval(expression))
            assert {key: row[key] for key in ("data_source", "ability", "reward_model")} == {
                "data_source": "arithmetic",
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": truth},
            }
            assert list(row["prompt"]) == [{"role": "user", "content": expression + "=?"}]
            assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (split, index)
            for response, right in ((solution, True), (solution + "1", False), ("", False)):
                found = compute_score("arithmetic", response, truth)
                assert found == {"score": 1.0 if right else -1.0, "acc": right, "pred": found["pred"]}
                assert (found["acc"], found["pred"]) == math_reward.paper_verdict(response, truth)
            expressions.add(expression)
        assert len(rows) == size
    assert len(expressions) == SMALL.train + SMALL.val  # none occurs twice


@pytest.mark.parametrize("answer", ["6", "6.", "**6**", "\u22126", "06", "7", "", "six", "6_0"])
def test_the_reward_reads_numbers(answer: str):
    right = answer in ("6", "6.", "**6**", "06")
    found = compute_score("arithmetic", f"1+5=6\nAnswer: {answer}", "6")
    assert found == {"score": 1.0 if right else -1.0, "acc": right, "pred": answer.removeprefix("**") or "[INVALID]"}


def test_more_expressions_than_there_are_or_fewer_than_none_cannot_be_asked_for(tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="error: Sample larger than population"):  # 9^4 of four operands
        arithmetic.main(["--out", str(tmp_path), "--train", str(3 * 9**4), "--val", "1"])
    with pytest.raises(SystemExit):
        arithmetic.main(["--out", str(tmp_path), "--train", "-5"])
    assert "--train: -5 is below 0" in capsys.readouterr().err


def test_same_arguments_give_the_same_bytes_once_and_what_was_changed_is_repaired(folder: Path, tmp_path: Path):
    def contents(folder: Path) -> list[bytes]:
        return [(folder / name).read_bytes() for name in FILES]

    line = ["--out", str(tmp_path), "--train", "300", "--val", "60", "--seed"]
    arithmetic.main([*line, "3"])
    assert contents(tmp_path) == contents(folder)
    time = (tmp_path / "train.parquet").stat().st_mtime_ns
    arithmetic.main([*line, "3"])
    assert (tmp_path / "train.parquet").stat().st_mtime_ns == time
    for name, broken in (("val.parquet", b"torn"), ("manifest.json", b"{torn"), ("manifest.json", b"[]")):
        (tmp_path / name).write_bytes(broken)
        arithmetic.main([*line, "3"])
        assert contents(tmp_path) == contents(folder)
    arithmetic.main([*line, "4"])
    assert not set(contents(tmp_path)) & set(contents(folder))
    manifest = storage.read_manifest(folder)
    assert manifest["arguments"]["val"] == SMALL.val
    assert manifest["files"]["val.parquet"] == {"rows": 60, "sha256": storage.sha256_of(folder / "val.parquet")}
