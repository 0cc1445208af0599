"""Responses on disk: killed, resumed, changed settings, damage."""

import multiprocessing

import pytest

from cppo_verl.evaluation import EvaluationError, store
from cppo_verl.launch.supervise import AlreadyRunning
from tests.evaluation.data import response

FORK = multiprocessing.get_context("fork")


def save_on_and_on(out, told) -> None:
    with store.opened(out, {"n": 1}) as saved:
        for row in range(1000):
            saved.append([response(row, text="x" * 20000)])
            told.send(row)


def test_kill_between_parts_loses_at_most_the_part_in_hand(tmp_path):
    heard, told = FORK.Pipe(duplex=False)
    process = FORK.Process(target=save_on_and_on, args=(tmp_path, told))
    process.start()
    while heard.recv() < 20:
        pass
    process.kill()
    process.join()
    with store.opened(tmp_path, {"n": 1}) as saved:
        rows = [r.row for r in saved.responses()]
        assert rows == list(range(len(rows)))
        assert 21 <= len(rows) < 1000
        saved.append([response(row=1000)])
        assert [r.row for r in saved.responses()] == [*rows, 1000]
    assert not list(tmp_path.rglob("*.tmp"))


def opening(out, settings) -> None:
    with store.opened(out, settings):
        pass


def test_a_changed_setting_refuses_and_fresh_starts_anew(tmp_path):
    before = {"n": 2, "model": "a", "data": ["1"]}
    opening(tmp_path, {"n": 3})  # without responses, anything goes
    with store.opened(tmp_path, before) as saved:
        saved.append([response(), response(sample=1)])
    with pytest.raises(EvaluationError, match=r"model: a before, b now; n: 2 before, 4 now\): give another --out"):
        opening(tmp_path, {**before, "model": "b", "n": 4})
    with store.opened(tmp_path, before) as saved:
        assert saved.responses() == [response(), response(sample=1)]
        saved.append([response(row=1)])
        (saved.parts[0]).write_bytes(b"torn")
        with pytest.raises(EvaluationError, match="from-0000..parquet cannot be read"):
            saved.responses()
    with store.opened(tmp_path, {**before, "n": 4}, fresh=True) as saved:
        assert saved.responses() == []
        with pytest.raises(AlreadyRunning, match="in use by another run"):
            opening(tmp_path, {})
