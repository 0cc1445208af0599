"""DAPO-Math-17k and AIME to verl's columns: counts, formats, bad rows, damaged files, repeated and killed runs."""

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.reward_score import default_compute_score

from data_prep import aime, dapo_math, math_data, math_table, problems
from data_prep.math_table import Options
from data_prep.problems import INSTRUCTION, REMINDER, BadRow
from data_prep.sources import DataError, Source
from data_prep.tiny_model import build_tokenizer
from tests import ROOT
from tests.data_prep.math_sources import aime_rows, dapo_rows, output_rows, verl_row, wrapped, write

FORMATS = ("parquet", "jsonl", "csv")
SKIP = Options(skip_bad_rows=True)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def flat(problem: Any, answer: Any) -> dict[str, Any]:
    return {"problem": problem, "answer": answer}


def manifest_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(f"{path.stem}.manifest.json").read_text())


def run_dapo(out: Path, source: Path, options: Options | None = None) -> Path:
    return dapo_math.prepare(out, Source(str(source)), options)


def command(module: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"data_prep.{module}", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def test_rows_counts_and_manifest(tmp_path: Path):
    source = write(dapo_rows(50, copies=4), tmp_path / "dapo.parquet")
    path = run_dapo(tmp_path / "out", source)
    rows, manifest = output_rows(path), manifest_of(path)
    assert manifest["counts"] == {
        "rows_read": 200,
        "bad_rows_skipped": 0,
        "unique_by_index": 50,
        "unique_by_prompt": 45,
        "repeated_prompts_dropped": 155,
        "repeats_with_another_answer": 0,
    }
    assert manifest["files"] == {path.name: {"rows": 45, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
    origin = {"file": "dapo.parquet", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert manifest["arguments"]["source"] == origin
    assert rows[3] == {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": f"{INSTRUCTION}\n\nFind $x$ if $x + 3 = 2 \\cdot 3$.\n\n{REMINDER}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"index": 3, "split": "train", "source_index": "id-3"},
    }
    assert [row["extra_info"]["index"] for row in rows] == list(range(45))


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str):
    rows = aime_rows(2026)
    rows[3]["problem"] = 'A "quoted", two-line\nproblem with ünïcode: $\\frac{1}{2}$'
    path = aime.prepare(tmp_path, 2026, Source(str(write(rows, tmp_path / f"a.{ending}"))))
    written = output_rows(path)
    assert [row["reward_model"]["ground_truth"] for row in written] == [str(i + 11) for i in range(30)]
    assert [row["prompt"][0]["content"].split("\n\n")[1] for row in written] == [row["problem"] for row in rows]
    assert {row["data_source"] for row in written} == {"aime26"}
    assert [row["extra_info"]["source_index"] for row in written] == [str(i) for i in range(30)]


def test_aime_2024_of_the_hub_is_deduplicated_and_renamed(tmp_path: Path):
    rows = [verl_row(wrapped(row["problem"]), f"{row['answer']:03d}", str(i)) for i, row in enumerate(aime_rows())]
    path = aime.prepare(tmp_path, 2024, Source(str(write(rows * 32, tmp_path / "aime.parquet"))))
    written = output_rows(path)
    assert len(written) == 30 and {row["data_source"] for row in written} == {"aime24"}
    assert written[0]["reward_model"]["ground_truth"] == "11"
    assert written[29]["reward_model"]["ground_truth"] == "40"
    assert manifest_of(path)["counts"]["rows_read"] == 960


def test_verls_scorer_takes_the_asked_form_for_every_row(tmp_path: Path):
    dapo = run_dapo(tmp_path, write(dapo_rows(20, copies=1), tmp_path / "dapo.jsonl"))
    contest = aime.prepare(tmp_path, 2025, Source(str(write(aime_rows(2025), tmp_path / "aime.jsonl"))))
    for row in output_rows(dapo) + output_rows(contest):
        truth = row["reward_model"]["ground_truth"]
        for answer, reward in ((truth, 1.0), (f"${truth}$", 1.0), (f"${truth}", 1.0), (truth + "1", -1.0)):
            verdict = default_compute_score(row["data_source"], f"Hence\nAnswer: {answer}", truth)
            assert (verdict["score"], verdict["acc"]) == (reward, reward > 0)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (wrapped("Find x."), "Find x."),
        (wrapped("Find x.\n\nHere x > 1."), "Find x.\n\nHere x > 1."),
        ("Find x.", "Find x."),
        ("Answer: what?\n\nFind x.", "Answer: what?\n\nFind x."),
        ("Let x = 1.\n\nFind x.\n\nWrite Answer: last.", "Let x = 1.\n\nFind x.\n\nWrite Answer: last."),
    ],
)
def test_problem_inside_a_prompt(prompt: str, problem: str):
    assert problems.problem_of(prompt) == problem


def test_asking_twice_changes_nothing():
    once = problems.ask(problems.Problem("Find x.", "Find x.", "1", ""))
    again = problems.ask(problems.Problem(once, problems.problem_of(once), "1", ""))
    assert once == again == f"{INSTRUCTION}\n\nFind x.\n\n{REMINDER}"


def test_repeats_with_another_answer_are_counted_and_the_first_is_kept(tmp_path: Path):
    rows = [flat("Find x.", "1"), flat("Find y.", "2"), flat("Find x.", "3")]
    path = run_dapo(tmp_path, write(rows, tmp_path / "d.jsonl"))
    assert [row["reward_model"]["ground_truth"] for row in output_rows(path)] == ["1", "2"]
    assert manifest_of(path)["counts"]["repeats_with_another_answer"] == 1


# Columns


def test_unknown_columns_fail_with_those_found(tmp_path: Path):
    source = write([{"text": "Find x.", "solution": "1"}], tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet: 0 columns.*prompt.*columns found: text, solution; .*--columns"):
        run_dapo(tmp_path, source)
    options = Options(columns={"prompt": "text", "answer": "solution"})
    assert len(output_rows(run_dapo(tmp_path, source, options))) == 1
    with pytest.raises(DataError, match="has no column txt; columns found: text, solution"):
        run_dapo(tmp_path, source, Options(columns={"prompt": "txt", "answer": "solution"}))


def test_two_possible_columns_fail_until_one_is_named(tmp_path: Path):
    source = write([{"prompt": "Find x.", "problem": "Find y.", "answer": "1"}], tmp_path / "d.jsonl")
    with pytest.raises(DataError, match=r"2 columns could be the prompt \(prompt or problem\)"):
        run_dapo(tmp_path, source)
    path = run_dapo(tmp_path, source, Options(columns={"prompt": "problem"}))
    assert "Find y." in output_rows(path)[0]["prompt"][0]["content"]


@pytest.mark.parametrize("text", ["prompt", "prompt=", "=x", "role=x"])
def test_columns_of_a_wrong_form_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str):
    with pytest.raises(SystemExit) as ended:
        dapo_math.main(["--out", str(tmp_path), "--source", "x.csv", "--columns", text])
    assert ended.value.code == 1
    assert "give prompt=NAME" in capsys.readouterr().err


# Bad rows

BAD = [
    ("problem", None, "is missing"),
    ("problem", " \n ", "is empty"),
    ("problem", 7, "is of type int, not text"),
    ("problem", [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], r"has the messages \['system'"),
    ("problem", [{"role": "user", "content": None}], "is missing"),
    ("problem", "x\ud800y", "has half of a surrogate pair"),
    ("answer", ["1"], "is of type list, not text"),  # the rest: test_answers.py
    ("answer", "1\n2", "has a line break"),
    ("answer", "units", "is units, of which the scorer reads ''"),
]


@pytest.mark.parametrize(("column", "value", "reason"), BAD)
def test_a_bad_row_stops_with_file_line_column_and_reason(tmp_path: Path, column: str, value: Any, reason: str):
    rows = [flat(f"Find {i}.", "1") for i in range(5)]
    rows[3][column] = value
    source = write(rows, tmp_path / "d.jsonl")
    with pytest.raises(BadRow, match=rf"d\.jsonl: line 4: column {column}: {reason}.*\(--skip-bad-rows"):
        run_dapo(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()
    path = run_dapo(tmp_path / "out", source, SKIP)
    manifest = manifest_of(path)
    assert manifest["counts"]["bad_rows_skipped"] == 1 and manifest["files"][path.name]["rows"] == 4
    assert "d.jsonl: line 4: column " + column in manifest["bad_rows"][0]


@pytest.mark.parametrize(
    ("value", "text"), [("2024-01-01", "2024-01-01"), (10**22 + 1, str(10**22 + 1)), ("34.0", "34"), ("007x", "007x")]
)
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_ground_truths_keep_what_they_were_written_as(tmp_path: Path, value: Any, text: str, ending: str):
    path = run_dapo(tmp_path, write([flat("Find\u2028x.", value)], tmp_path / f"d.{ending}"))
    row = output_rows(path)[0]
    assert row["reward_model"]["ground_truth"] == text and "Find\u2028x." in row["prompt"][0]["content"]


def test_aime_answers_are_whole_numbers_of_three_digits(tmp_path: Path):
    rows = aime_rows(2025)
    rows[7]["answer"] = "073"
    path = aime.prepare(tmp_path, 2025, Source(str(write(rows, tmp_path / "a.jsonl"))))
    assert output_rows(path)[7]["reward_model"]["ground_truth"] == "73"
    rows[7]["answer"] = "7_3"
    with pytest.raises(BadRow, match="line 8: column answer: is 7_3, not a whole number of 0 to 999"):
        aime.prepare(tmp_path, 2025, Source(str(write(rows, tmp_path / "a.jsonl"))))


def test_rows_of_parquet_and_lines_of_csv_are_named(tmp_path: Path):
    rows = [flat("Find\nx.", "1"), flat("Find y.", None), flat("Find z.", "2")]
    with pytest.raises(BadRow, match=r"d\.parquet: row 2: column answer: is missing"):
        run_dapo(tmp_path, write(rows, tmp_path / "d.parquet"))
    with pytest.raises(BadRow, match=r"d\.csv: line 4: column answer: is empty"):
        run_dapo(tmp_path, write(rows, tmp_path / "d.csv"))
    (tmp_path / "e.csv").write_text("problem,answer\nx,1\ny\nz,2,3\n")
    path = run_dapo(tmp_path, tmp_path / "e.csv", SKIP)
    faults = manifest_of(path)["bad_rows"]
    assert ["line 3: column (the line): has 1 fields" in faults[0], "line 4" in faults[1]] == [True, True]


def test_broken_lines_of_jsonl_are_bad_rows(tmp_path: Path):
    good = json.dumps(flat("Find x.", "1")).encode()
    lines = [b"{not json", b"[1, 2]", b'{"problem": "\xff", "answer": "1"}', b"[" * 100_000, b"", good]
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(BadRow, match=r"line 1: column \(the line\): is not JSON"):
        run_dapo(tmp_path, tmp_path / "d.jsonl")
    counts = manifest_of(run_dapo(tmp_path, tmp_path / "d.jsonl", SKIP))["counts"]
    assert (counts["rows_read"], counts["bad_rows_skipped"], counts["unique_by_prompt"]) == (5, 4, 1)


def test_a_wrong_number_of_problems_stops(tmp_path: Path):
    source = write(aime_rows(2025, count=29), tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="has 29 different problems, aime25 should have 30"):
        aime.prepare(tmp_path, 2025, Source(str(source)))
    assert len(output_rows(aime.prepare(tmp_path, 2025, Source(str(source)), problems=29))) == 29
    with pytest.raises(DataError, match=r"has no usable row of 1 read"):
        run_dapo(tmp_path, write([flat("", "1")], tmp_path / "d.jsonl"), SKIP)


# Damaged files: one sentence, exit status 1, no traceback


def damaged(folder: Path) -> dict[str, tuple[bytes, str]]:
    """File name -> content and what is said of it."""
    source = write(dapo_rows(3000, copies=1), folder / "d.parquet", compression="none", row_group_size=500)
    whole = source.read_bytes()
    lines = write([flat(f"Find {i}.", "1") for i in range(9)], folder / "d.jsonl").read_bytes()
    return {
        "cut.parquet": (whole[: len(whole) // 2], "damaged or cut off"),
        "hit.parquet": (whole.replace(b"Find $x$ if $x + 2300 ", b"\xff" * 22), "after row 0: damaged or cut off"),
        "text.parquet": (b"not parquet at all", "damaged or cut off"),
        "empty.parquet": (b"", "damaged or cut off"),
        "cut.jsonl": (lines[:-10], "line 9: the file is cut off in the middle of this line"),
        "open.csv": (b'problem,answer\nFind x.,1\n"Find y.,2\n', "line 3: damaged or cut off"),
        "zip.csv": (gzip.compress(b"problem,answer\n"), "damaged or cut off"),
        "empty.jsonl": (b"", "columns found: none"),
        "binary.jsonl": (b"\xff\xfe\n\xff\n", "line 1: is not JSON"),
        "rows.txt": (b"x", "unknown format"),
        "no_such_folder/absent.jsonl": (b"", "no such file"),
    }


def test_damaged_files_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, (content, reason) in damaged(tmp_path).items():
        path = tmp_path / name
        if path.parent == tmp_path:
            path.write_bytes(content)
        with pytest.raises(SystemExit) as ended:
            dapo_math.main(["--out", str(tmp_path / "out"), "--source", str(path), "--skip-bad-rows"])
        assert ended.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert str(path) in error and reason in error, error
    assert not (tmp_path / "out").exists()


# Repeated runs


def test_a_second_run_does_nothing_unless_something_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write(dapo_rows(20, copies=2), tmp_path / "d.jsonl")
    path = run_dapo(tmp_path / "out", source)
    stamps = {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    assert set(stamps) == {"dapo_math.parquet", "dapo_math.manifest.json"}
    assert "18 rows of 40 read" in capsys.readouterr().out
    run_dapo(tmp_path / "out", source)
    assert "already there, unchanged" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()} == stamps
    first = path.read_bytes()
    path.write_bytes(first[:-1])
    run_dapo(tmp_path / "out", source)
    assert path.read_bytes() == first
    write(dapo_rows(30, copies=2), source)
    run_dapo(tmp_path / "out", source)
    assert len(output_rows(path)) == 27
    run_dapo(tmp_path / "out", source, Options(keep_wording=True))
    assert output_rows(path)[0]["prompt"][0]["content"] == wrapped("Find $x$ if $x + 0 = 2 \\cdot 0$.")


# Size


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_100k_rows_repeated_100_times(tmp_path: Path, ending: str):
    """Under 30 s of processor time and 2 GiB for the whole command, prompts as long as DAPO's (600 characters)."""
    rows = [verl_row(wrapped(f"{'Consider its digits. ' * 20}Number {i}."), str(i), f"id-{i}") for i in range(1000)]
    source = write(rows * 100, tmp_path / f"d.{ending}")
    program = (
        "import sys, time; from data_prep import dapo_math; dapo_math.main(sys.argv[1:])\n"
        "peak = open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]\n"
        "print(time.process_time(), int(peak) // 1024)"
    )
    line = [sys.executable, "-c", program, "--out", str(tmp_path / "out"), "--source", str(source)]
    output = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout
    assert "1000 rows of 100000 read (1000 by index, 1000 by prompt" in output
    seconds, mib = map(float, output.split()[-2:])
    assert seconds < 30 and mib < 2048


# verl


@pytest.mark.parametrize("limit", [1024, 200])
def test_verls_dataset_reads_the_files(tmp_path: Path, limit: int):
    rows = dapo_rows(20, copies=2)
    rows.append(verl_row(wrapped("Long. " * 200), "1", "long"))
    train = run_dapo(tmp_path, write(rows, tmp_path / "d.parquet"))
    val = aime.prepare(tmp_path, 2025, Source(str(write(aime_rows(2025), tmp_path / "a.jsonl"))))
    options = {"max_prompt_length": limit, "cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts_workers": 1}
    dataset = RLHFDataset([str(train), str(val)], build_tokenizer(), OmegaConf.create(options))
    assert len(dataset) == (48 if limit == 1024 else 0)
    if limit == 1024:
        item = dataset[18]
        assert item["data_source"] == "aime25" and item["index"] == 0
        assert item["raw_prompt"][0]["content"].startswith(INSTRUCTION)
        assert item["reward_model"]["ground_truth"] == "11"


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as its client needs to list a data set's files and to fetch one."""

    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        data = self._find()
        self.send_response(200 if data is not None else 404)
        data = data or b""
        headers = {"Content-Length": len(data), "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _find(self) -> bytes | None:
        place = self.path.split("?")[0]
        if place.startswith("/api/datasets/some/aime/tree/"):
            listing = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
            return json.dumps(listing).encode()
        name = place.partition("/datasets/some/aime/resolve/")[2].partition("/")[2]
        return self.files.get(name)

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a command that talks to a hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    settings |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    settings |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    yield {**os.environ, **settings}
    server.shutdown()


def test_from_the_hub_with_its_commit_and_then_from_the_cache(tmp_path: Path, hub: dict[str, str]):
    data = write(aime_rows(2025), tmp_path / "a.jsonl").read_bytes()
    Hub.files = {"README.md": b"# x", "test.jsonl": data}
    line = ["aime", "--out", tmp_path / "out", "--year", "2025", "--source", "some/aime", "--revision", "v1"]
    first = command(*line, env=hub)
    assert first.returncode == 0, first.stderr
    origin = {"repo": "some/aime", "file": "test.jsonl", "revision": "v1", "commit": COMMIT}
    made = manifest_of(tmp_path / "out" / "aime25.parquet")["arguments"]["source"]
    assert made == origin | {"sha256": hashlib.sha256(data).hexdigest()}
    again = command(*line, "--file", "test.jsonl", env={**hub, "HF_HUB_OFFLINE": "1"})
    assert "already there, unchanged" in again.stdout, again.stderr


def test_what_the_hub_refuses_ends_in_one_sentence(tmp_path: Path, hub: dict[str, str]):
    Hub.files = {"a.jsonl": b"", "b.jsonl": b""}
    line = ["aime", "--out", tmp_path / "out", "--year", "2025", "--source"]
    several = command(*line, "some/aime", env=hub)
    absent = command(*line, "some/other", env=hub)
    offline = command(*line, "some/aime", "--file", "a.jsonl", env={**hub, "HF_HUB_OFFLINE": "1"})
    for ended, reason in (
        (several, "has 2 data files (a.jsonl, b.jsonl): choose one with --file"),
        (absent, "some/other (revision main): the hub did not give it"),
        (offline, "copy the file here and name it with --source"),
    ):
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("error: ") and reason in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"revision": "abc"}, Source(dapo_math.HUB.place, dapo_math.HUB.file, "abc")),
        ({"source": "x/y"}, Source("x/y", "", "main")),  # a place of one's own drops the declared file
    ],
)
def test_what_the_command_line_changes_of_a_source(given, source):
    options = argparse.Namespace(**{"source": None, "file": None, "revision": None, **given})
    assert math_table.choose_source(dapo_math.HUB, options) == source


# Everything


def test_everything_in_one_command_without_validation_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = ["--out", str(tmp_path / "out")]
    for year in aime.HUB:
        source = write(aime_rows(year), tmp_path / f"{year}.jsonl")
        line += [f"--aime{year % 100}-source", str(source)]
    spoiled = verl_row(wrapped(aime_rows(2026)[4]["problem"].replace(" ", "  ").upper()), "15", "spoiled")
    train = write([*dapo_rows(20, copies=2), spoiled], tmp_path / "d.parquet")
    math_data.main([*line, "--train-source", str(train)])
    made = {path.name for path in (tmp_path / "out").iterdir()}
    names = ["aime24", "aime25", "aime26", "dapo_math", "train"]
    assert made == {f"{name}{end}" for name in names for end in (".parquet", ".manifest.json")} | {
        "train.dropped.jsonl"
    }
    assert len(output_rows(tmp_path / "out" / "dapo_math.parquet")) == 19
    assert len(output_rows(tmp_path / "out" / "train.parquet")) == 18
    assert "18 rows; 1 left out" in capsys.readouterr().out
    math_data.main([*line, "--train-source", str(train)])
    assert capsys.readouterr().out.count("already there, unchanged") == 5
