"""Reading logs: what is merged, what is kept out, and what is said when nothing can be read."""

import json
import math
from pathlib import Path

import pytest

from cppo_verl.reporting.logs import LogError, find_logs, read_run

ACCURACY = "val-core/toy/acc/mean@1"


def line(step: object, **data: object) -> str:
    return json.dumps({"step": step, "data": data}) + "\n"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def rows(run) -> dict[int, dict[str, float]]:
    """step -> metric -> value, without what is not logged."""
    return {step: row.dropna().to_dict() for step, row in run.frame.iterrows()}


def test_a_run_directory_a_log_directory_and_a_file_read_the_same(tmp_path, monkeypatch):
    log = write(tmp_path / "toy/logs/metrics-1.jsonl", line(0, a=1), line(1, a=2))
    write(tmp_path / "toy/config.yaml", "data: {train_batch_size: 16}\n")
    monkeypatch.chdir(tmp_path / "toy")
    for place, name, said in ((".", "toy", {"prompts": 16}), (log.parent, "logs", {}), (log, "metrics-1", {})):
        run = read_run(place)
        assert (run.name, run.settings, rows(run)) == (name, said, {0: {"a": 1.0}, 1: {"a": 2.0}})
        assert run.frame.index.name == "step" and run.frame.dtypes.unique().tolist() == ["float64"]


NOTHING = {  # files -> what is said
    "others": ({"train.log": "x", "checkpoints/x": ""}, r"found checkpoints, train\.log\. .*trainer\.logger"),
    "no step": (
        {"logs/m-1.jsonl": "", "logs/m-2.jsonl": '{"st'},
        r"no steps in m-1\.jsonl, m-2\.jsonl of .* m-2\.jsonl: the last line was torn",
    ),
    "several": ({x: line(1, a=3) for x in ("a.jsonl", "b.jsonl")}, r"several runs .*a\.jsonl.*b\.jsonl.*one of these"),
    "no record": ({"m.jsonl": line(1, a=1) + '{"loss": 3}\n'}, "line 2: not a record"),  # even at the end
}


@pytest.mark.parametrize(("files", "said"), NOTHING.values(), ids=NOTHING)
def test_why_there_is_nothing_to_read_is_said(tmp_path, files, said):
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(LogError, match=said):
        read_run(tmp_path)


def test_starts_are_in_natural_order(tmp_path):
    for start in (10, 9, 100):
        write(tmp_path / f"logs/metrics-{start}.jsonl", line(1, start=start))
    assert [path.name for path in find_logs(tmp_path)] == ["metrics-9.jsonl", "metrics-10.jsonl", "metrics-100.jsonl"]
    run = read_run(tmp_path)
    assert rows(run) == {1: {"start": 100.0}} and run.notes == ()
    write(tmp_path / "logs/others.jsonl", line(2, start=2))
    assert "merged as one run's" in read_run(tmp_path).notes[0]


MERGED = {  # logs by start -> rows, and what one of the notes says
    "a step that is logged twice": (
        [[line(5, loss=1, reward=2), line(5, **{ACCURACY: 0.5}), line(5, loss=3)]],
        {5: {"loss": 3.0, "reward": 2.0, ACCURACY: 0.5}},
        None,
    ),
    "the validation before a resumed start adds to the checkpoint's step": (
        [[line(40, loss=4, **{ACCURACY: 0.5}), line(41, loss=5)], [line(40, **{ACCURACY: 0.6}), line(41, loss=6)]],
        {40: {"loss": 4.0, ACCURACY: 0.6}, 41: {"loss": 6.0}},
        None,
    ),
    "validated, and then trained again": (
        [[line(1, loss=4, old=1)], [line(1, **{ACCURACY: 0.6}), line(1, loss=6)]],
        {1: {"loss": 6.0, ACCURACY: 0.6}},
        None,
    ),
    "steps that begin again inside one file": (
        [[line(1, a=1), line(2, a=2), line(3, a=3), line(1.0, a=10), line(2, a=20)]],
        {1: {"a": 10.0}, 2: {"a": 20.0}, 3: {"a": 3.0}},
        "metrics-0.jsonl: after step 3 comes step 1 again",
    ),
    "steps of before a run went back, not logged again": (
        [[line(step, a=1) for step in range(1, 5)], [line(2, a=2)]],
        {1: {"a": 1.0}, 2: {"a": 2.0}, 3: {"a": 1.0}, 4: {"a": 1.0}},
        "metrics-0.jsonl: steps 3 to 4 are of before the run went back to step 2",
    ),
    "a NaN that a later start replaced": ([[line(1, a=math.nan)], [line(1, a=2)]], {1: {"a": 2.0}}, None),
    **{
        f"a last line torn as {torn!r}": (
            [[line(1, a=1), torn], [line(2, a=2).rstrip("\n")]],
            {1: {"a": 1.0}, 2: {"a": 2.0}},
            "metrics-0.jsonl: the last line was torn",
        )
        for torn in ('{"step": 2, "data": {"a": 3', "\n\n{\n\n")
    },
}


@pytest.mark.parametrize(("starts", "expected", "note"), MERGED.values(), ids=MERGED)
def test_starts_are_merged(tmp_path, starts, expected, note):
    for number, lines in enumerate(starts):
        write(tmp_path / f"logs/metrics-{number}.jsonl", *lines)
    run = read_run(tmp_path)
    assert rows(run) == expected and run.frame.index.is_monotonic_increasing
    assert [n for n in run.notes if note is None or not n.startswith(note)] == [] and bool(run.notes) == bool(note)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b'{"step": 1, "da{"step": 2, "data": {}}\n', "not JSON"),
        (b'{"step": 1, "data": [1]}\n', "not a record of verl's file logger"),
        *((line(x, a=1).encode(), f"step={x!r} is not a whole") for x in ("one", 1.5, True, math.inf, 10**30)),
    ],
)
def test_a_damaged_line_names_file_and_line(tmp_path, bad, why):
    (tmp_path / "m.jsonl").write_bytes(line(1, a=1).encode() + b"\n" + bad + line(3, a=3).encode())
    with pytest.raises(LogError, match=rf"m\.jsonl, line 3: {why}.*--skip-bad-lines"):
        read_run(tmp_path)
    run = read_run(tmp_path, skip_bad_lines=True)
    assert rows(run) == {1: {"a": 1.0}, 3: {"a": 3.0}}
    assert run.notes == ("m.jsonl: 1 damaged line was skipped.",)


def test_nan_null_and_infinity_are_kept_apart_from_numbers_and_noted(tmp_path):
    huge = f'{{"step": 3, "data": {{"d": -1{"0" * 400}}}}}\n'
    odd = line(1, a=math.nan, b=math.inf, c=None, d=1), line(2, a=2, b=-math.inf, d=True, note="hi", shape=[1])
    run = read_run(write(tmp_path / "m.jsonl", *odd, huge, line(4)))
    expected = {1: {"b": math.inf, "d": 1.0}, 2: {"a": 2.0, "b": -math.inf, "d": 1.0}, 3: {"d": -math.inf}, 4: {}}
    assert rows(run) == expected and run.frame.columns.tolist() == ["a", "b", "c", "d"]
    assert run.nonfinite == {"a": [1], "b": [1, 2], "c": [1], "d": [3]}
    assert [note[:24] for note in run.notes[:2]] == ["a: 1 logged value is NaN", "b: 2 logged values are N"]
    assert len(run.notes) == 4


def test_an_unreadable_config_is_a_note_and_the_log_is_still_read(tmp_path):
    write(tmp_path / "metrics-1.jsonl", line(1, a=1))
    write(tmp_path / "config.yaml", "- a list\n")
    run = read_run(tmp_path)
    assert rows(run) == {1: {"a": 1.0}}
    assert "config.yaml" in run.notes[0] and "settings are missing" in run.notes[0]
