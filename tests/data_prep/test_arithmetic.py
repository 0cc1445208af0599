"""The arithmetic data: hand-worked solutions, verl's own verdict on them, splits, files."""

import json
import os
from itertools import product
from pathlib import Path

import pandas
import pytest

from data_prep import arithmetic, paper_scorer, storage
from data_prep.arithmetic import Arguments, partial_results, solution_text
from data_prep.arithmetic_reward import compute_score

SMALL = Arguments(train=300, val=60, seed=3)
FILES = ["train.parquet", "val.parquet", "manifest.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arithmetic")
    assert arithmetic.prepare(out, SMALL)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


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
    rows = pandas.concat([pandas.read_parquet(folder / f"{s}.parquet") for s in ("train", "val")]).to_dict("records")
    places = [("train", i) for i in range(SMALL.train)] + [("val", i) for i in range(SMALL.val)]
    for row, (split, index) in zip(rows, places, strict=True):
        expression, solution = row["extra_info"]["expression"], row["extra_info"]["solution"]
        truth = str(eval(expression))
        assert {key: row[key] for key in ("data_source", "ability", "reward_model")} == {
            "data_source": "arithmetic",
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": truth},
        }
        assert list(row["prompt"]) == [{"role": "user", "content": expression + "=?"}]
        assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (split, index)
        *lines, answer = solution.split("\n")
        value = expression[0]
        for line in lines:  # every equation holds and starts where the last one ended
            left, right = line.split("=")
            assert left.startswith(value) and eval(left) == int(right)
            value = right
        assert answer == f"Answer: {value}"
        wrong = solution.replace(answer, f"Answer: {int(truth) + 1}")
        for response, right in ((solution, True), (wrong, False), (solution.replace(answer, ""), False)):
            found = compute_score("arithmetic", response, truth)
            assert found == {"score": 1.0 if right else -1.0, "acc": right, "pred": found["pred"]}
            assert (found["acc"], found["pred"]) == paper_scorer.verdict(response, truth)
    assert len({row["extra_info"]["expression"] for row in rows}) == len(rows)  # none occurs twice


@pytest.mark.parametrize("answer", ["6", "6.", "**6**", "\u22126", "06", "6.0", "-6", "7", "", "six", "6_0"])
def test_the_reward_reads_numbers(answer: str):
    right = answer in ("6", "6.", "**6**", "06", "6.0")
    found = compute_score("arithmetic", f"1+5=6\nAnswer: {answer}", "6")
    assert found == {"score": 1.0 if right else -1.0, "acc": right, "pred": answer.removeprefix("**") or "[INVALID]"}


def test_all_expressions_can_be_asked_for_and_not_one_more():
    every = Arguments(train=76, val=5, min_operands=2, max_operands=2)
    assert len(set(arithmetic.draw_expressions(every))) == 36 + 45  # sums up to 9, differences from 0
    with pytest.raises(ValueError, match="of 81: ask for fewer rows"):
        arithmetic.draw_expressions(Arguments(train=77, val=5, min_operands=2, max_operands=2))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--train", "0"], "train = 0"),
        (["--val", "-1"], "val = -1"),
        (["--min-operands", "1"], "min_operands = 1"),
        (["--min-operands", "7"], "max_operands = 6"),
        (["--train", "1000000"], "ask for fewer rows"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path: Path, option: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        arithmetic.main(["--out", str(tmp_path), *option])
    assert os.listdir(tmp_path) == []


def test_same_arguments_give_the_same_bytes_once_and_what_was_changed_is_repaired(folder: Path, tmp_path: Path):
    def prepare(seed: int) -> None:
        line = {"--out": tmp_path, "--train": SMALL.train, "--val": SMALL.val, "--seed": seed}
        arithmetic.main([str(word) for pair in line.items() for word in pair])

    prepare(SMALL.seed)
    assert contents(tmp_path) == contents(folder)
    times = [os.stat(tmp_path / name).st_mtime_ns for name in FILES]
    prepare(SMALL.seed)
    assert [os.stat(tmp_path / name).st_mtime_ns for name in FILES] == times
    (tmp_path / "val.parquet").write_bytes(b"torn")
    prepare(SMALL.seed)
    assert contents(tmp_path) == contents(folder) and sorted(os.listdir(tmp_path)) == sorted(FILES)
    prepare(4)
    assert not set(contents(tmp_path).values()) & set(contents(folder).values())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seed"] == SMALL.seed and manifest["arguments"]["val"] == SMALL.val
    sizes = {"train.parquet": SMALL.train, "val.parquet": SMALL.val}
    files = {name: {"rows": size, "sha256": storage.sha256_of(folder / name)} for name, size in sizes.items()}
    assert manifest["files"] == files
