"""DAPO-Math-17k and AIME to verl's columns: counts, formats, bad rows, damaged files, repeated runs, the hub."""

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
from data_prep.problems import INSTRUCTION, REMINDER, BadRow
from data_prep.sources import DataError, Source
from tests import ROOT
from tests.data_prep.math_sources import aime_rows, dapo_rows, output_rows, verl_row, wrapped, write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def flat(problem: Any, answer: Any) -> dict[str, Any]:
    return {"problem": problem, "answer": answer}


def manifest_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(f"{path.stem}.manifest.json").read_text())


def make(out: Path, source: Path, year: int = 0, count: int = 30, **options: Any) -> Path:
    """DAPO's file, or that of AIME's ``year``."""
    table = aime.table(year, count) if year else dapo_math.TABLE
    return math_table.prepare(out, table, Source(str(source)), **options)


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
        "unique_by_index": 50,
        "unique_by_prompt": 45,
        "repeated_prompts_dropped": 156,
        "repeats_with_another_answer": 1,
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
    assert [row["extra_info"]["index"] for row in rows] == list(range(45)) and answers_of(path)[0] == "0"


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str):
    rows = aime_rows(2026)
    rows[3]["problem"] = 'A "quoted", two-line\nproblem with ünïcode\u2028: $\\frac{1}{2}$'
    written = output_rows(make(tmp_path, write(rows, tmp_path / f"a.{ending}"), 2026))
    assert [row["reward_model"]["ground_truth"] for row in written] == [str(i + 11) for i in range(30)]
    assert [row["prompt"][0]["content"].split("\n\n")[1] for row in written] == [row["problem"] for row in rows]
    assert {row["data_source"] for row in written} == {"aime26"}
    assert [row["extra_info"]["source_index"] for row in written] == [str(i) for i in range(30)]


def test_aime_2024_of_the_hub_is_deduplicated_and_renamed(tmp_path: Path):
    rows = [verl_row(wrapped(row["problem"]), f"{row['answer']:03d}", str(i)) for i, row in enumerate(aime_rows())]
    path = make(tmp_path, write(rows * 32, tmp_path / "aime.parquet"), 2024)
    assert answers_of(path) == [str(number) for number in range(11, 41)]
    assert {row["data_source"] for row in output_rows(path)} == {"aime24"}
    assert manifest_of(path)["counts"]["rows_read"] == 960


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (wrapped("Find x."), "Find x."),
        (problems.ask(problems.Problem("Find x.", "Find x.", "1", "")), "Find x."),  # asked twice is asked once
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
        (source, {**named, "prompt": "txt"}, "has no column txt; columns found: text, solution"),
        (two, {}, r"2 columns could be the prompt \(prompt or problem\)"),
    ):
        with pytest.raises(DataError, match=words):
            make(tmp_path, file, columns=columns)
    assert answers_of(make(tmp_path, source, columns=named)) == ["1"]
    assert "Find y." in output_rows(make(tmp_path, two, columns={"prompt": "problem"}))[0]["prompt"][0]["content"]
    for text in ("prompt", "prompt=", "=x", "role=x"):
        with pytest.raises(SystemExit, match="give prompt=NAME"):
            dapo_math.main(["--out", str(tmp_path), "--source", "x.csv", "--columns", text])


# Bad rows


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("problem", None, "is missing"),
        ("problem", " \n ", "is empty"),
        ("problem", 7, "is of type int, not text"),
        ("problem", [{"role": "system", "content": "x"}, {"role": "user"}], r"has the messages \['system'"),
        ("problem", [{"role": "user", "content": None}], "is missing"),
        ("problem", "x\ud800y", "has half of a surrogate pair"),
        ("answer", ["1"], "is of type list, not text"),  # the rest: test_answers.py
        ("answer", "1\n2", "has a line break"),
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
    assert len(answers_of(make(tmp_path, source, 2025, count=22))) == 22


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


def test_damaged_files_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = write(dapo_rows(3000, copies=1), tmp_path / "d.parquet", compression="none", row_group_size=500).read_bytes()
    lines = write([flat(f"Find {i}.", "1") for i in range(9)], tmp_path / "d.jsonl").read_bytes()
    for name, content, reason in (
        ("cut.parquet", rows[: len(rows) // 2], "damaged or cut off"),
        ("hit.parquet", rows.replace(b"Find $x$ if $x + 2300 ", b"\xff" * 22), "damaged or cut off after row 0"),
        ("text.parquet", b"not parquet at all", "damaged or cut off"),
        ("empty.parquet", b"", "damaged or cut off"),
        ("cut.jsonl", lines[:-10], "line 9: the file is cut off in the middle of this line"),
        ("open.csv", b'problem,answer\nFind x.,1\n"Find y.,2\n', "damaged or cut off after line 2"),
        ("zip.csv", gzip.compress(b"problem,answer\n"), "damaged or cut off"),
        ("none.jsonl", json.dumps(flat("", "1")).encode() + b"\n", "has no usable row of 1 read"),
        ("empty.jsonl", b"", "columns found: none"),
        ("binary.jsonl", b"\xff\xfe\n\xff\n", "columns found: none"),
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
        said = capsys.readouterr().err
        assert name == "none.jsonl" or not said
    assert not (tmp_path / "out").exists()


def test_a_second_run_does_nothing_unless_something_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write(dapo_rows(20, copies=2), tmp_path / "d.jsonl")
    path = make(tmp_path / "out", source)
    stamps = {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    assert set(stamps) == {"dapo_math.parquet", "dapo_math.manifest.json"}
    make(tmp_path / "out", source)
    said = capsys.readouterr().out
    assert "rows read 40" in said and "already there, unchanged" in said
    assert {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()} == stamps
    first = path.read_bytes()
    path.write_bytes(first[:-1])
    make(tmp_path / "out", source)
    assert path.read_bytes() == first
    write(dapo_rows(30, copies=2), source)
    assert len(answers_of(make(tmp_path / "out", source))) == 27
    kept = output_rows(make(tmp_path / "out", source, keep_wording=True))
    assert kept[0]["prompt"][0]["content"] == wrapped("Find $x$ if $x + 0 = 2 \\cdot 0$.")


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
    assert "rows read 100000, bad rows skipped 0, unique by prompt 1000, " in output
    seconds, mib = map(float, output.split()[-2:])
    assert seconds < 30 and mib < 2048


def test_verl_reads_and_scores_the_files(tmp_path: Path, tokenizer, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")  # not the user's, who may have none
    rows = [*dapo_rows(20, copies=2), verl_row(wrapped("Long. " * 200), "1", "long")]
    train = make(tmp_path, write(rows, tmp_path / "d.parquet"))
    val = make(tmp_path, write(aime_rows(2025), tmp_path / "a.jsonl"), 2025)
    options = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts_workers": 1}
    long, short = (
        RLHFDataset([str(train), str(val)], tokenizer, OmegaConf.create({**options, "max_prompt_length": limit}))
        for limit in (1024, 200)
    )
    assert (len(long), len(short)) == (48, 0)
    item = long[18]
    assert item["data_source"] == "aime25" and item["index"] == 0
    assert item["raw_prompt"][0]["content"].startswith(INSTRUCTION)
    assert item["reward_model"]["ground_truth"] == "11"
    for row in output_rows(train) + output_rows(val):
        truth = row["reward_model"]["ground_truth"]
        for answer, reward in ((truth, 1.0), (f"${truth}$", 1.0), (f"${truth}", 1.0), (truth + "1", -1.0)):
            verdict = default_compute_score(row["data_source"], f"Hence\nAnswer: {answer}", truth)
            assert (verdict["score"], verdict["acc"]) == (reward, reward > 0)


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as its client needs to list a data set's files and to fetch one."""

    files: dict[str, bytes] = {}

    def do_GET(self) -> None:
        place = self.path.split("?")[0]
        data = self.files.get(place.partition("/datasets/some/aime/resolve/")[2].partition("/")[2])
        if place.startswith("/api/datasets/some/aime/tree/"):
            listing = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
            data = json.dumps(listing).encode()
        self.send_response(404 if data is None else 200)
        data = data or b""
        headers = {"Content-Length": len(data), "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a command that talks to a hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    settings |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    yield {**os.environ, **settings, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    server.shutdown()


def test_from_the_hub_with_its_commit_and_then_from_the_cache(tmp_path: Path, hub: dict[str, str]):
    def command(*arguments: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "data_prep.aime", "--out", str(tmp_path / "out"), "--year", "2025", "--source"]
        environment = {**hub, "HF_HUB_OFFLINE": offline}
        return subprocess.run([*line, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)

    data = write(aime_rows(2025), tmp_path / "a.jsonl").read_bytes()
    Hub.files = {"README.md": b"# x", "test.jsonl": data}
    first = command("some/aime", "--revision", "v1")
    assert first.returncode == 0, first.stderr
    origin = {"repo": "some/aime", "file": "test.jsonl", "revision": "v1", "commit": COMMIT}
    made = manifest_of(tmp_path / "out" / "aime25.parquet")["arguments"]["source"]
    assert made == origin | {"sha256": hashlib.sha256(data).hexdigest()}
    again = command("some/aime", "--revision", "v1", "--file", "test.jsonl", offline="1")
    assert "already there, unchanged" in again.stdout, again.stderr
    Hub.files = {"a.jsonl": b"", "b.jsonl": b""}
    for ended, reason in (
        (command("some/aime"), "has 2 data files (a.jsonl, b.jsonl): choose one with --file"),
        (command("some/other"), "some/other (revision main): the hub did not give it"),
        (command("some/aime", "--file", "a.jsonl", offline="1"), "copy the file here and name it with --source"),
    ):
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("error: ") and reason in ended.stderr and "Traceback" not in ended.stderr


def test_what_the_command_line_changes_of_a_source(monkeypatch: pytest.MonkeyPatch):
    found: list[Source] = []
    monkeypatch.setattr(math_table, "prepare", lambda out, table, source, *options: found.append(source))
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
