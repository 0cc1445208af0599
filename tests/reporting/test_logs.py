"""Reading logs: what is merged, what is kept out, and what is said when nothing can be read."""

import json
import math
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cppo_verl.reporting.logs import LogError, find_logs, read_run


def line(step: object, **data: object) -> str:
    return json.dumps({"step": step, "data": data}) + "\n"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def rows(run) -> dict[int, dict[str, float]]:
    """step -> metric -> value, without what is not logged."""
    return {step: row.dropna().to_dict() for step, row in run.frame.iterrows()}


# --- where logs are looked for ------------------------------------------------------------------------------------


def test_a_run_directory_a_log_directory_and_a_file_read_the_same(tmp_path):
    log = write(tmp_path / "toy/logs/metrics-1.jsonl", line(0, a=1), line(1, a=2))
    for place, name in ((tmp_path / "toy", "toy"), (tmp_path / "toy/logs", "logs"), (log, "metrics-1")):
        run = read_run(place)
        assert (run.name, rows(run)) == (name, {0: {"a": 1.0}, 1: {"a": 2.0}})
        assert run.frame.index.name == "step" and run.frame.dtypes.unique().tolist() == ["float64"]


def test_verls_own_place_is_read(tmp_path):
    write(tmp_path / "project/experiment.jsonl", line(1, a=2))
    assert rows(read_run(tmp_path / "project")) == {1: {"a": 2.0}}


def test_a_relative_dot_has_a_name(tmp_path, monkeypatch):
    write(tmp_path / "toy/logs/metrics-1.jsonl", line(0, a=1))
    monkeypatch.chdir(tmp_path / "toy")
    assert read_run(".").name == "toy"


def test_several_experiments_in_one_directory_are_not_one_run(tmp_path):
    write(tmp_path / "cppo.jsonl", line(1, a=2))
    write(tmp_path / "dppo.jsonl", line(1, a=3))
    with pytest.raises(LogError, match=r"several runs .*cppo\.jsonl.*dppo\.jsonl.*Give one of these files"):
        read_run(tmp_path)


def test_starts_are_in_natural_order(tmp_path):
    for start in (10, 9, 100):
        write(tmp_path / f"logs/metrics-{start}.jsonl", line(1, start=start))
    assert [path.name for path in find_logs(tmp_path)] == ["metrics-9.jsonl", "metrics-10.jsonl", "metrics-100.jsonl"]
    assert rows(read_run(tmp_path)) == {1: {"start": 100.0}}


def test_a_missing_directory_an_empty_one_and_one_without_logs_say_so(tmp_path):
    with pytest.raises(LogError, match="nowhere does not exist"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(LogError, match=r"looked for logs/\*\.jsonl and \*\.jsonl, found an empty directory"):
        read_run(tmp_path)
    write(tmp_path / "train.log", "hello")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(LogError, match=r"found checkpoints/, train\.log\. .*trainer\.logger"):
        read_run(tmp_path)


def test_a_log_without_steps_names_the_files_and_what_they_held(tmp_path):
    write(tmp_path / "logs/metrics-1.jsonl")
    write(tmp_path / "logs/metrics-2.jsonl", '{"step": 0, "da')
    with pytest.raises(LogError, match=r"no steps in .*metrics-1\.jsonl, .*metrics-2\.jsonl: .*1 torn last lines"):
        read_run(tmp_path)


# --- merging ------------------------------------------------------------------------------------------------------


def test_a_step_logged_twice_in_one_file_is_merged(tmp_path):
    write(tmp_path / "m.jsonl", line(5, loss=1, reward=2), line(5, **{"val-core/toy/acc/mean@1": 0.5}), line(5, loss=3))
    assert rows(read_run(tmp_path)) == {5: {"loss": 3.0, "reward": 2.0, "val-core/toy/acc/mean@1": 0.5}}


def test_the_later_start_wins_where_both_trained_a_step(tmp_path):
    write(tmp_path / "logs/metrics-1.jsonl", *(line(step, loss=step, old=1) for step in range(1, 6)))
    write(tmp_path / "logs/metrics-2.jsonl", *(line(step, loss=10 * step) for step in range(4, 8)))
    run = read_run(tmp_path)
    assert run.frame["loss"].to_dict() == {1: 1, 2: 2, 3: 3, 4: 40, 5: 50, 6: 60, 7: 70}
    assert run.frame["old"].dropna().index.tolist() == [1, 2, 3]  # nothing of the abandoned steps 4 and 5 is left
    assert run.notes == ()
    assert [(file.path.name, file.records, file.first, file.last) for file in run.files] == [
        ("metrics-1.jsonl", 5, 1, 5),
        ("metrics-2.jsonl", 4, 4, 7),
    ]


def test_the_validation_before_a_resumed_start_adds_to_the_checkpoints_step(tmp_path):
    accuracy = "val-core/toy/acc/mean@1"
    write(tmp_path / "logs/metrics-1.jsonl", line(39, loss=3), line(40, loss=4, **{accuracy: 0.5}), line(41, loss=5))
    write(tmp_path / "logs/metrics-2.jsonl", line(40, **{accuracy: 0.6}), line(41, loss=6))
    assert rows(read_run(tmp_path)) == {39: {"loss": 3.0}, 40: {"loss": 4.0, accuracy: 0.6}, 41: {"loss": 6.0}}


def test_steps_that_a_resumed_run_has_not_reached_again_are_kept_and_named(tmp_path):
    write(tmp_path / "logs/metrics-1.jsonl", *(line(step, loss=1) for step in range(1, 7)))
    write(tmp_path / "logs/metrics-2.jsonl", line(4, loss=2))
    run = read_run(tmp_path)
    assert run.frame["loss"].tolist() == [1, 1, 1, 2, 1, 1]
    (note,) = run.notes
    assert note.startswith("Steps 5 to 6 come from metrics-1.jsonl, before the run went back to step 4")


def test_steps_are_sorted_whatever_their_order_in_the_file(tmp_path):
    write(tmp_path / "m.jsonl", line(3, a=3), line(1.0, a=1), line(2, a=2))
    assert read_run(tmp_path).frame["a"].to_dict() == {1: 1, 2: 2, 3: 3}


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ['{"step": 2, "data": {"a": 3', '{"step": 2, "da\n', "\0\0\0\0", "\n\n{\n\n"])
def test_a_torn_last_line_is_skipped_counted_and_noted(tmp_path, torn):
    write(tmp_path / "m.jsonl", line(1, a=1), torn)
    run = read_run(tmp_path)
    assert rows(run) == {1: {"a": 1.0}}
    assert (run.files[0].torn, run.files[0].records) == (True, 1)
    assert "m.jsonl: the last line was torn" in run.notes[0]


def test_a_torn_line_in_each_start_is_skipped(tmp_path):
    write(tmp_path / "logs/metrics-1.jsonl", line(1, a=1), '{"step": 2')
    write(tmp_path / "logs/metrics-2.jsonl", line(2, a=2), '{"st')
    run = read_run(tmp_path)
    assert rows(run) == {1: {"a": 1.0}, 2: {"a": 2.0}}
    assert [file.torn for file in run.files] == [True, True]


def test_a_complete_last_line_without_newline_is_read(tmp_path):
    write(tmp_path / "m.jsonl", line(1, a=1), line(2, a=2).rstrip("\n"))
    assert rows(read_run(tmp_path)) == {1: {"a": 1.0}, 2: {"a": 2.0}}


@pytest.mark.parametrize(
    "bad", ["{broken\n", "\0\0\n", '{"step": 1, "da{"step": 2, "data": {}}\n', "[" * 5000 + "]" * 5000 + "\n"]
)
def test_a_damaged_line_in_the_middle_names_file_and_line(tmp_path, bad):
    write(tmp_path / "m.jsonl", line(1, a=1), "\n", bad, line(3, a=3))
    with pytest.raises(LogError, match=r"m\.jsonl, line 3: .*--skip-bad-lines"):
        read_run(tmp_path)
    run = read_run(tmp_path, skip_bad_lines=True)
    assert rows(run) == {1: {"a": 1.0}, 3: {"a": 3.0}}
    assert run.files[0].skipped == 1
    assert run.notes == ("m.jsonl: 1 damaged line was skipped.",)


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(line(1, a=1).encode() + b"\xff\xfe{\n" + line(2, a=2).encode())
    with pytest.raises(LogError, match=r"m\.jsonl, line 2"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ('{"loss": 3}\n', "not a record of verl's file logger"),
        ("[1, 2]\n", "not a record"),
        ('{"step": 1, "data": [1]}\n', "not a record"),
        (line("one", a=1), "step='one' is not a whole number"),
        (line(1.5, a=1), "step=1.5 is not a whole number"),
        (line(None, a=1), "step=None is not a whole number"),
        (line(True, a=1), "step=True is not a whole number"),
        (line(math.inf, a=1), "step=inf is not a whole number"),
        (line(math.nan, a=1), "step=nan is not a whole number"),
        (line(10**30, a=1), f"step={10**30} is not a whole number"),
    ],
)
def test_json_that_is_no_record_is_an_error_even_at_the_end(tmp_path, bad, why):
    write(tmp_path / "m.jsonl", line(1, a=1), bad)
    with pytest.raises(LogError, match=rf"m\.jsonl, line 2: {why}"):
        read_run(tmp_path)
    assert rows(read_run(tmp_path, skip_bad_lines=True)) == {1: {"a": 1.0}}


# --- values -------------------------------------------------------------------------------------------------------


def test_nan_null_and_infinity_are_kept_apart_from_numbers_and_noted(tmp_path):
    write(tmp_path / "m.jsonl", line(1, a=math.nan, b=math.inf, c=None, d=1), line(2, a=2, b=-math.inf, d=True))
    run = read_run(tmp_path)
    assert rows(run) == {1: {"b": math.inf, "d": 1.0}, 2: {"a": 2.0, "b": -math.inf, "d": 1.0}}
    assert run.frame.columns.tolist() == ["a", "b", "c", "d"]
    assert run.notes == (
        "a: 1 logged value is NaN or infinite and not drawn.",
        "b: 2 logged values are NaN or infinite and not drawn.",
        "c: 1 logged value is NaN or infinite and not drawn.",
    )


def test_a_step_replaced_by_a_later_start_does_not_count_as_odd(tmp_path):
    write(tmp_path / "logs/metrics-1.jsonl", line(1, loss=math.nan))
    write(tmp_path / "logs/metrics-2.jsonl", line(1, loss=2))
    assert read_run(tmp_path).notes == ()


def test_integers_beyond_float_are_infinite(tmp_path):
    write(tmp_path / "m.jsonl", f'{{"step": 1, "data": {{"a": -1{"0" * 400}, "b": 7}}}}\n')
    assert rows(read_run(tmp_path)) == {1: {"a": -math.inf, "b": 7.0}}


def test_text_is_left_out_and_noted(tmp_path):
    write(tmp_path / "m.jsonl", line(1, a=1, note="hello", shape=[1, 2]), line(2, a=2, note="again"))
    run = read_run(tmp_path)
    assert run.frame.columns.tolist() == ["a"]
    assert run.notes == ("Not numbers, and left out: note, shape.",)


def test_a_step_with_nothing_in_it_is_a_step(tmp_path):
    write(tmp_path / "m.jsonl", line(0), line(1, a=1))
    assert read_run(tmp_path).frame["a"].isna().to_dict() == {0: True, 1: False}


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_come_from_the_config_beside_the_logs(tmp_path):
    log = write(tmp_path / "logs/metrics-1.jsonl", line(1, a=1))
    assert read_run(tmp_path).settings == {}
    write(tmp_path / "config.yaml", "data: {train_batch_size: 16}\n")
    assert read_run(tmp_path).settings == {"prompts": 16}
    assert read_run(log).settings == {}


@pytest.mark.parametrize("content", ["a: [1, 2\n", "- a list\n", "\0"])
def test_an_unreadable_config_is_a_note_and_the_log_is_still_read(tmp_path, content):
    write(tmp_path / "metrics-1.jsonl", line(1, a=1))
    write(tmp_path / "config.yaml", content)
    run = read_run(tmp_path)
    assert rows(run) == {1: {"a": 1.0}}
    assert "config.yaml" in run.notes[0] and "settings are missing" in run.notes[0]


# --- properties ---------------------------------------------------------------------------------------------------

metrics = st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False, width=32), min_size=1)
records = st.lists(st.tuples(st.integers(0, 12), metrics), min_size=1, max_size=20)


@settings(max_examples=60)
@given(starts=st.lists(records, min_size=1, max_size=3), cut=st.integers(1, 30))
def test_any_log_merges_to_what_a_dictionary_says(tmp_path_factory, starts, cut):
    folder = tmp_path_factory.mktemp("run")
    expected: dict[int, dict[str, float]] = {}
    for number, start in enumerate(starts):
        fresh: dict[int, dict[str, float]] = {}
        for step, data in start:
            fresh.setdefault(step, {}).update(data)
        expected.update(fresh)
        torn = line(99, a=1).rstrip("\n")[:-cut]
        write(folder / f"logs/metrics-{number}.jsonl", *(line(step, **data) for step, data in start), torn)
    run = read_run(folder)
    assert rows(run) == expected
    assert run.frame.index.is_monotonic_increasing and run.frame.index.is_unique


def test_memory_does_not_grow_with_lines_that_are_not_kept(tmp_path):
    """8 MB of repeats of one step: what is read must stay far below the size of the file."""
    chunk = line(1, **{f"metric/{i}": i for i in range(400)})
    with (tmp_path / "m.jsonl").open("w") as stream:
        for _ in range(8_000_000 // len(chunk)):
            stream.write(chunk)
    assert os.path.getsize(tmp_path / "m.jsonl") > 7_000_000
    tracemalloc.start()
    try:
        read_run(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
