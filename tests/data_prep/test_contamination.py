"""Validation problems in the training set: what counts as the same, what is dropped and where that is written."""

import json
from pathlib import Path

import pytest

from data_prep import contamination
from data_prep.contamination import find_matches, normalise
from tests.data_prep.math_sources import output_rows, verl_row, wrapped, write

PROBLEM = (
    "Let $x$ and $y$ be two positive real numbers with $x + y = \\frac{1}{2}$ and $xy = 7$. "
    "Find $\\left(x^{2}+y^{2}\\right)$."
)


@pytest.mark.parametrize(
    "same",
    [
        PROBLEM.upper(),
        PROBLEM.replace("$", ""),
        PROBLEM.replace("$", "$$"),
        PROBLEM.replace(" ", "\n  "),
        PROBLEM.replace("\\frac", "\\dfrac"),
        PROBLEM.replace("\\left", "").replace("\\right", ""),
        PROBLEM.replace(" + ", "\\,+\\;").replace("=", "\\quad=\\ "),
        PROBLEM.replace("$x$", "\\(x\\)").replace("x^{2}", "x^2"),
        PROBLEM.replace("real numbers", "\\textbf{real} numbers") + "[asy] draw((0,0)--(1,1)); [/asy]",
        PROBLEM.replace("Find", "“Find”").rstrip("."),
    ],
)
def test_spellings_of_one_problem(same: str):
    assert normalise(same) == normalise(PROBLEM)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *[("x + y", "x - y"), ("7", "8"), ("x^{2}", "x^{3}"), ("\\frac{1}{2}", "\\frac{2}{1}"), ("$xy", "$x/y")],
        *[(" and ", " \\leftarrow and "), (" and ", " \\leq and ")],  # commands that only begin like layout
    ],
)
def test_other_problems_stay_other(old: str, new: str):
    assert find_matches([PROBLEM.replace(old, new)], {"v": [PROBLEM]}) == []


def test_containment_needs_length_and_a_match_names_both_rows():
    longer = PROBLEM + " The answer is of the form m/n; give m+n."
    known = {"a": ["None."], "b": ["Find x.", PROBLEM], "c": [PROBLEM]}
    found = find_matches(["Find x. Then add 1.", PROBLEM, longer], known)
    assert [tuple(match.values()) for match in found] == [
        (1, PROBLEM, "equal", "b", 1),
        (2, longer, "contained", "b", 1),
    ]
    assert [match["kind"] for match in find_matches([PROBLEM], {"v": [longer]})] == ["contained"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    train = [verl_row(wrapped(f"Problem number {i}."), str(i), str(i)) for i in range(50)]
    train[7] = verl_row(wrapped(PROBLEM.lower()), "1", "7")
    train[30] = verl_row(PROBLEM + " Give the answer as a whole number.", "1", "30")
    val = [verl_row(wrapped(text), "1", "v") for text in ("Nothing.", PROBLEM)]
    return {
        "train": write(train, tmp_path / "dapo.parquet"),
        "val": write(val, tmp_path / "aime25.parquet"),
        "out": tmp_path / "train.parquet",
    }


def run(files: dict[str, Path], **changes: Path) -> None:
    contamination.main([word for name, path in (files | changes).items() for word in (f"--{name}", str(path))])


def test_dropped_rows_are_listed_and_the_rest_is_unchanged(files: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    run(files)
    assert "48 rows; 2 left out for being validation problems" in capsys.readouterr().out
    assert output_rows(files["out"]) == [row for i, row in enumerate(output_rows(files["train"])) if i not in (7, 30)]
    dropped = [json.loads(line) for line in files["out"].with_name("train.dropped.jsonl").read_text().splitlines()]
    assert [(d["row"], d["kind"], d["validation_file"], d["validation_row"]) for d in dropped] == [
        (7, "equal", "aime25.parquet", 1),
        (30, "contained", "aime25.parquet", 1),
    ]
    manifest = json.loads(files["out"].with_name("train.manifest.json").read_text())
    assert manifest["files"]["train.parquet"]["rows"] == 48 and manifest["files"]["train.dropped.jsonl"]["rows"] == 2
    run(files)
    assert "already there, unchanged" in capsys.readouterr().out
    clean = files["out"].with_name("clean.parquet")
    run(files, train=files["out"], out=clean)
    assert output_rows(clean) == output_rows(files["out"])
    run(files, val=files["train"], out=clean)
    assert output_rows(clean) == []


def test_errors_are_one_sentence(files: dict[str, Path], tmp_path: Path):
    (tmp_path / "cut.parquet").write_bytes(files["train"].read_bytes()[:-20])
    write([verl_row("", "1", "0")], tmp_path / "bad.parquet")
    write([{"text": "x"}], tmp_path / "other.parquet")
    for name, reason in (
        ("cut.parquet", "damaged or cut off"),
        ("bad.parquet", "row 1: column prompt: is empty"),
        ("other.parquet", "column prompt: is missing"),
        ("absent.parquet", "No such file"),
    ):
        with pytest.raises(SystemExit, match=f"^error: (.*{name}: .*{reason}|.*{reason}.*{name})[^\n]*$"):
            run(files, val=tmp_path / name)
    with pytest.raises(SystemExit):
        run(files, out=files["train"])
    assert not files["out"].exists()
