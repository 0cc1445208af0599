"""DAPO-Math-17k and AIME to verl's columns: counts, formats, bad rows, damaged files, repeated runs, the hub."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.reward_score import default_compute_score

from data_prep import aime, dapo_math, math_data, math_table, problems, storage
from data_prep.problems import INSTRUCTION, REMINDER, BadRow
from data_prep.sources import DataError, Source
from tests.data_prep.math_sources import aime_rows, dapo_rows, output_rows, verl_row, wrapped, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def flat(problem: Any, answer: Any) -> dict[str, Any]:
    return {"problem": problem, "answer": answer}


def manifest_of(path: Path) -> dict[str, Any]:
    return storage.read_manifest(path.parent, f"{path.stem}.manifest.json")


def make(out: Path, source: Path, year: int = 0, **options: Any) -> Path:
    """DAPO's file, or that of AIME's ``year``."""
    table = aime.TABLES[year] if year else dapo_math.TABLE
    return math_table.prepare(out, replace(table, source=Source(str(source))), **options)


def answers_of(path: Path) -> list[str]:
    return [row["reward_model"]["ground_truth"] for row in output_rows(path)]


def test_rows_counts_and_manifest(tmp_path: Path):
    """Of prompts that come again the first answer stays."""
    rows = [*dapo_rows(50, copies=4), {**dapo_rows(1, 1)[0], "reward_model": {"ground_truth": "7", "style": "x"}}]
    source = write(rows, tmp_path / "dapo.parquet")
    path = make(tmp_path / "out", source)
    rows, manifest = output_rows(path), manifest_of(path)
    assert manifest["counts"] == {
        "rows_read": 201,
        "bad_rows_skipped": 0,
        "unique_by_prompt": 45,
        "repeated_prompts_dropped": 156,
        "repeats_with_another_answer": 1,
    }
    assert manifest["files"] == {path.name: {"rows": 45, "sha256": storage.sha256_of(path)}}
    assert manifest["arguments"]["source"] == {"file": "dapo.parquet", "sha256": storage.sha256_of(source)}
    assert rows[3] == {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": f"{INSTRUCTION}\n\nFind $x$ if $x + 3 = 2 \\cdot 3$.\n\n{REMINDER}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 3, "split": "train"},
    }
    assert [row["extra_info"]["index"] for row in rows] == list(range(45)) and answers_of(path)[0] == "0"


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str):
    rows = aime_rows(2026)
    rows[3]["problem"] = 'A "quoted", two-line\nproblem with ünïcode\u2028: $\\frac{1}{2}$'
    written = output_rows(make(tmp_path, write(rows, tmp_path / f"a.{ending}"), 2026))
    assert [row["reward_model"]["ground_truth"] for row in written] == [str(i + 11) for i in range(30)]
    assert [row["prompt"][0]["content"].split("\n\n")[1] for row in written] == [row["problem"] for row in rows]
    assert {row["data_source"] for row in written} == {"aime26"}


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (wrapped("Find x."), "Find x."),
        (problems.ask(problems.Problem("Find x.", "Find x.", "1")), "Find x."),  # asked twice is asked once
        (wrapped("Find x.\n\nHere x > 1."), "Find x.\n\nHere x > 1."),
        ("Find x.", "Find x."),
        ("Answer: what?\n\nFind x.", "Answer: what?\n\nFind x."),
        ("Let x = 1.\n\nFind x.\n\nWrite Answer: last.", "Let x = 1.\n\nFind x.\n\nWrite Answer: last."),
    ],
)
def test_problem_inside_a_prompt(prompt: str, problem: str):
    assert problems.problem_of(prompt) == problem


def test_columns_are_found_or_named(tmp_path: Path):
    source = write([{"text": "Find x.", "solution": "1"}], tmp_path / "d.parquet")
    two = write([{"prompt": "Find x.", "problem": "Find y.", "answer": "1"}], tmp_path / "d.jsonl")
    named = {"prompt": "text", "answer": "solution"}
    for file, columns, words in (
        (source, {}, r"d\.parquet: 0 columns.*prompt.*columns found: text, solution; .*--columns"),
        (source, {**named, "prompt": "txt"}, r"0 columns could be the prompt \(txt\); columns found: text, solution"),
        (two, {}, r"2 columns could be the prompt \(prompt or problem\)"),
    ):
        with pytest.raises(DataError, match=words):
            make(tmp_path, file, columns=columns)
    assert answers_of(make(tmp_path, source, columns=named)) == ["1"]
    assert "Find y." in output_rows(make(tmp_path, two, columns={"prompt": "problem"}))[0]["prompt"][0]["content"]
    with pytest.raises(SystemExit, match="--columns role=x: give prompt=NAME or answer=NAME"):
        dapo_math.main(["--out", str(tmp_path), "--source", "x.csv", "--columns", "role=x"])


# Bad rows


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("problem", [{"role": "user", "content": None}], "is missing"),
        ("problem", [{"role": "system", "content": "x"}, {"role": "user"}], r"has the messages \['system'"),
        ("answer", "1\n2", "has a line break"),  # the rest: test_answers.py
        ("answer", "units", "is units, of which the scorer reads ''"),
    ],
)
def test_a_bad_row_stops_with_file_line_column_and_reason(tmp_path: Path, column: str, value: Any, reason: str):
    rows = [flat(f"Find {i}.", "1") for i in range(5)]
    rows[3][column] = value
    source = write(rows, tmp_path / "d.jsonl")
    with pytest.raises(BadRow, match=rf"d\.jsonl: line 4: column {column}: {reason}.*\(--skip-bad-rows"):
        make(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()
    path = make(tmp_path / "out", source, skip_bad_rows=True)
    manifest = manifest_of(path)
    assert manifest["counts"]["bad_rows_skipped"] == 1 and manifest["files"][path.name]["rows"] == 4
    assert "d.jsonl: line 4: column " + column in manifest["bad_rows"][0]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_ground_truths_keep_what_they_were_written_as(tmp_path: Path, ending: str):
    values = {"2024-01-01": "2024-01-01", 10**22 + 1: str(10**22 + 1), "34.0": "34", "007x": "007x"}
    source = write([flat(f"Find {i}.", value) for i, value in enumerate(values)], tmp_path / f"d.{ending}")
    assert answers_of(make(tmp_path, source)) == list(values.values())


def test_aime_has_thirty_answers_of_three_digits(tmp_path: Path):
    rows = aime_rows(2025)
    rows[7]["answer"] = "073"
    assert answers_of(make(tmp_path, write(rows, tmp_path / "a.jsonl"), 2025))[7] == "73"
    rows[7]["answer"] = "7_3"
    with pytest.raises(BadRow, match="line 8: column answer: is 7_3, not a whole number of 0 to 999"):
        make(tmp_path, write(rows, tmp_path / "a.jsonl"), 2025)
    source = write(rows[8:], tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="has 22 different problems, aime25 should have 30"):
        make(tmp_path, source, 2025)
    aime.main(["--out", str(tmp_path), "--year", "2025", "--source", str(source), "--problems", "22"])
    assert len(answers_of(tmp_path / "aime25.parquet")) == 22


def test_rows_of_parquet_and_lines_of_csv_and_jsonl_are_named(tmp_path: Path):
    rows = [flat("Find\nx.", "1"), flat("Find y.", None), flat("Find z.", "2")]
    (tmp_path / "e.csv").write_text("problem,answer\nx,1\ny\nz,2,3\n")
    good = json.dumps(flat("Find x.", "1")).encode()
    lines = [b"{not json", b"[1, 2]", b'{"problem": "\xff", "answer": "1"}', b"[" * 100_000, b"", good, b""]
    (tmp_path / "e.jsonl").write_bytes(b"\n".join(lines))
    for source, words in (
        (write(rows, tmp_path / "d.parquet"), r"d\.parquet: row 2: column answer: is missing"),
        (write(rows, tmp_path / "d.csv"), r"d\.csv: line 4: column answer: is empty"),
        (tmp_path / "e.csv", r"line 3: column \(the line\): has 1 fields"),
        (tmp_path / "e.jsonl", r"line 1: column \(the line\): is not JSON"),
    ):
        with pytest.raises(BadRow, match=words):
            make(tmp_path, source)
    for name, counted in (("e.csv", (3, 2, 1)), ("e.jsonl", (5, 4, 1))):
        counts = manifest_of(make(tmp_path, tmp_path / name, skip_bad_rows=True))["counts"]
        assert (counts["rows_read"], counts["bad_rows_skipped"], counts["unique_by_prompt"]) == counted


def test_damaged_files_end_in_one_sentence(tmp_path: Path):
    rows = write(dapo_rows(3000, copies=1), tmp_path / "d.parquet", compression="none", row_group_size=500).read_bytes()
    lines = write([flat(f"Find {i}.", "1") for i in range(9)], tmp_path / "d.jsonl").read_bytes()
    for name, content, reason in (
        ("cut.parquet", rows[: len(rows) // 2], "damaged or cut off: "),
        ("hit.parquet", rows.replace(b"Find $x$ if $x + 2300 ", b"\xff" * 22), "damaged or cut off"),
        ("cut.jsonl", lines[:-10], "after line 9: the file ends in the middle of this line"),
        ("open.csv", b'problem,answer\nFind x.,1\n"Find y.,2\n', "damaged or cut off after line 2"),
        ("none.jsonl", json.dumps(flat("", "1")).encode() + b"\n", "has no usable row of 1 read"),
        ("empty.jsonl", b"", "columns found: none"),
        ("rows.txt", b"x", "unknown format"),
        ("absent.jsonl", None, "no such file"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SystemExit) as ended:
            dapo_math.main(["--out", str(tmp_path / "out"), "--source", str(path), "--skip-bad-rows"])
        error = str(ended.value)
        assert error.startswith("error: ") and "\n" not in error and str(path) in error and reason in error, error
    assert not (tmp_path / "out").exists()


def test_a_second_run_does_nothing_unless_something_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write(dapo_rows(20, copies=2), tmp_path / "d.jsonl")
    stamp = make(tmp_path / "out", source).stat().st_mtime_ns
    assert make(tmp_path / "out", source).stat().st_mtime_ns == stamp
    said = capsys.readouterr().out
    assert "rows read 40" in said and "already there, unchanged" in said
    write(dapo_rows(30, copies=2), source)
    assert len(answers_of(make(tmp_path / "out", source))) == 27
    kept = output_rows(make(tmp_path / "out", source, keep_wording=True))
    assert kept[0]["prompt"][0]["content"] == wrapped("Find $x$ if $x + 0 = 2 \\cdot 0$.")


def test_verl_reads_and_scores_the_files(tmp_path: Path, tokenizer, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")  # not the user's, who may have none
    rows = [*dapo_rows(20, copies=1), verl_row(wrapped("Long. " * 200), "1", "long")]
    train = make(tmp_path, write(rows, tmp_path / "d.parquet"))
    val = make(tmp_path, write(aime_rows(2025), tmp_path / "a.jsonl"), 2025)
    options = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts_workers": 1, "max_prompt_length": 1024}
    data = RLHFDataset([str(train), str(val)], tokenizer, OmegaConf.create(options))
    assert len(data) == 48
    item = data[18]
    assert item["data_source"] == "aime25" and item["index"] == 0
    assert item["raw_prompt"][0]["content"].startswith(INSTRUCTION)
    assert item["reward_model"]["ground_truth"] == "11"
    for row in output_rows(train) + output_rows(val):
        truth = row["reward_model"]["ground_truth"]
        for answer, reward in ((truth, 1.0), (f"${truth}$", 1.0), (f"${truth}", 1.0), (truth + "1", -1.0)):
            verdict = default_compute_score(row["data_source"], f"Hence\nAnswer: {answer}", truth)
            assert (verdict["score"], verdict["acc"]) == (reward, reward > 0)


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A data set's files by name, as the hub's client lists them and puts them into its cache."""
    files: dict[str, Path] = {}

    def listed(self: Any, repo: str, revision: str, repo_type: str) -> list[str]:
        return ["README.md", *files]

    def fetched(repo: str, name: str, revision: str, repo_type: str) -> str:
        return str(files[name])

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", listed)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    folder = tmp_path / "snapshots/datasets--some--aime/snapshots" / COMMIT / "data"
    folder.mkdir(parents=True)
    files["data/test.jsonl"] = write(aime_rows(2025), folder / "test.jsonl")
    return files


def test_from_the_hub_with_its_commit(tmp_path: Path, hub: dict[str, Path]):
    line = ["--out", str(tmp_path / "out"), "--year", "2025", "--source", "some/aime", "--revision", "v1"]
    aime.main(line)
    made = manifest_of(tmp_path / "out" / "aime25.parquet")["arguments"]["source"]
    origin = {"repo": "some/aime", "file": "data/test.jsonl", "revision": "v1", "commit": COMMIT}
    assert made == origin | {"sha256": storage.sha256_of(hub["data/test.jsonl"])}
    hub["b.jsonl"] = hub["data/test.jsonl"]
    with pytest.raises(SystemExit, match=r"has 2 data files \(data/test.jsonl, b.jsonl\): choose one with --file"):
        aime.main(line)
    with pytest.raises(SystemExit, match=r"revision v1.*: the hub did not give it: .*name it with --source"):
        aime.main([*line, "--file", "absent.jsonl"])


def test_what_the_command_line_changes_of_a_source(monkeypatch: pytest.MonkeyPatch):
    found: list[Source] = []
    monkeypatch.setattr(math_table, "prepare", lambda out, table, *options: found.append(table.source))
    dapo_math.main(["--out", "x", "--revision", "abc"])
    dapo_math.main(["--out", "x", "--source", "x/y"])  # a place of one's own drops the declared file
    assert found == [Source(dapo_math.HUB.place, dapo_math.HUB.file, "abc"), Source("x/y")]


def test_everything_in_one_command_without_validation_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = ["--out", str(tmp_path / "out")]
    for year in aime.HUB:
        line += [f"--aime{year % 100}-source", str(write(aime_rows(year), tmp_path / f"{year}.jsonl"))]
    spoiled = verl_row(wrapped(aime_rows(2026)[4]["problem"].replace(" ", "  ").upper()), "15", "spoiled")
    line += ["--train-source", str(write([*dapo_rows(20, copies=2), spoiled], tmp_path / "d.parquet"))]
    math_data.main(line)
    names = ["aime24", "aime25", "aime26", "dapo_math", "train"]
    files = {f"{name}{end}" for name in names for end in (".parquet", ".manifest.json")} | {"train.dropped.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert len(output_rows(tmp_path / "out" / "dapo_math.parquet")) == 19
    assert len(output_rows(tmp_path / "out" / "train.parquet")) == 18
    assert "18 rows; 1 left out" in capsys.readouterr().out
    math_data.main(line)
    assert capsys.readouterr().out.count("already there, unchanged") == 5
