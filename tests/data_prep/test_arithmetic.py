"""The arithmetic data: hand-worked solutions, verl's own verdict on them, splits, files."""

import json
import os
from itertools import product
from pathlib import Path

import pandas
import pytest

from data_prep import arithmetic, paper_scorer, storage
from data_prep.arithmetic import Arguments, Expression
from data_prep.arithmetic_reward import compute_score

SMALL = Arguments(train=300, val=60, seed=3)
FILES = ["train.parquet", "val.parquet", "manifest.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arithmetic")
    assert arithmetic.prepare(out, SMALL)
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict]:
    return pandas.concat([pandas.read_parquet(folder / f"{s}.parquet") for s in ("train", "val")]).to_dict("records")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_solution_worked_by_hand():
    expression = Expression(3, (("+", 4), ("-", 2), ("+", 1)))
    assert str(expression) == "3+4-2+1"
    assert arithmetic.partial_results(expression) == [7, 5, 6]
    assert arithmetic.reference_solution(expression) == "3+4=7\n7-2=5\n5+1=6\nAnswer: 6"
    # An error in the first line is carried through the rest.
    assert arithmetic.solution_text(expression, [8, 6, 7]) == "3+4=8\n8-2=6\n6+1=7\nAnswer: 7"
    assert arithmetic.parse_expression("3+4-2+1") == expression


def test_counting_and_numbering_agree_with_brute_force():
    moves = list(product("+-", range(1, 10)))
    everything = [Expression(first, pair) for first in range(1, 10) for pair in product(moves, repeat=2)]
    allowed = {str(e) for e in everything if all(0 <= value <= 11 for value in arithmetic.partial_results(e))}
    assert arithmetic.count_expressions(3, limit=11) == len(allowed)
    assert {str(arithmetic.expression_at(i, 3, limit=11)) for i in range(len(allowed))} == allowed
    with pytest.raises(IndexError):
        arithmetic.expression_at(len(allowed), 3, limit=11)


def test_rows_have_verls_columns(rows: list[dict]):
    for row in rows:
        assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
        assert row["data_source"] == "arithmetic"
        assert [set(message) for message in row["prompt"]] == [{"role", "content"}]
        expression = row["extra_info"]["expression"]
        assert row["prompt"][0] == {"role": "user", "content": expression + "=?"}
        assert row["reward_model"] == {"style": "rule", "ground_truth": str(eval(expression))}
    places = [(row["extra_info"]["split"], row["extra_info"]["index"]) for row in rows]
    assert places == [("train", i) for i in range(SMALL.train)] + [("val", i) for i in range(SMALL.val)]
    assert len({row["extra_info"]["expression"] for row in rows}) == len(rows)  # no expression occurs twice


def test_every_equation_of_a_solution_holds_and_starts_where_the_last_one_ended(rows: list[dict]):
    for row in rows:
        *lines, answer = row["extra_info"]["solution"].split("\n")
        value = row["extra_info"]["expression"][0]
        for line in lines:
            left, right = line.split("=")
            assert left.startswith(value) and eval(left) == int(right)
            value = right
        assert answer == f"Answer: {value}"


def test_the_reward_agrees_with_the_papers_scorer_on_solutions_and_perturbed_ones(rows: list[dict]):
    for row in rows:
        truth, solution = row["reward_model"]["ground_truth"], row["extra_info"]["solution"]
        wrong = solution[: solution.rindex(":")] + f": {int(truth) + 1}"
        for response, right in ((solution, True), (wrong, False), (solution[: solution.index("Answer")], False)):
            found = compute_score("arithmetic", response, truth)
            assert found == {"score": 1.0 if right else -1.0, "acc": right, "pred": found["pred"]}
            assert (found["acc"], found["pred"]) == paper_scorer.verdict(response, truth)


def test_all_expressions_can_be_asked_for_and_not_one_more():
    available = arithmetic.count_expressions(2, 9)  # 36 sums up to 9, 45 differences from 0
    every = Arguments(train=available - 5, val=5, min_operands=2, max_operands=2)
    assert len({str(e) for e in arithmetic.draw_expressions(every)}) == available == 36 + 45
    with pytest.raises(ValueError, match="of 81: ask for fewer rows"):
        arithmetic.draw_expressions(Arguments(train=available - 4, val=5, min_operands=2, max_operands=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0}, "train = 0"),
        ({"val": -1}, "val = -1"),
        ({"min_operands": 1}, "min_operands = 1"),
        ({"min_operands": 5, "max_operands": 4}, "max_operands = 4"),
        ({"limit": 8}, "limit = 8"),
    ],
)
def test_arguments_out_of_range_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Arguments(**change)


def test_same_arguments_give_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path):
    assert arithmetic.prepare(tmp_path / "again", SMALL)
    assert contents(tmp_path / "again") == contents(folder)
    arithmetic.prepare(tmp_path / "other", Arguments(train=300, val=60, seed=4))
    assert not set(contents(tmp_path / "other").values()) & set(contents(folder).values())


def test_second_call_rewrites_nothing_and_repairs_what_was_changed(tmp_path: Path):
    line = ["--out", str(tmp_path), "--train", "20", "--val", "5"]
    arithmetic.main(line)
    first, times = contents(tmp_path), [os.stat(tmp_path / name).st_mtime_ns for name in FILES]
    arithmetic.main(line)
    assert [os.stat(tmp_path / name).st_mtime_ns for name in FILES] == times
    (tmp_path / "val.parquet").write_bytes(b"torn")
    arithmetic.main(line)
    assert contents(tmp_path) == first
    assert sorted(os.listdir(tmp_path)) == sorted(FILES)


def test_manifest_describes_the_files(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seed"] == SMALL.seed and manifest["arguments"]["val"] == SMALL.val
    sizes = {"train.parquet": SMALL.train, "val.parquet": SMALL.val}
    files = {name: {"rows": size, "sha256": storage.sha256_of(folder / name)} for name, size in sizes.items()}
    assert manifest["files"] == files


def test_the_command_refuses_what_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        arithmetic.main(["--out", str(tmp_path), "--train", "1000000", "--val", "10"])
    assert "ask for fewer rows" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
