"""Hostile records, for replay and calibrate: a sentence or a right answer."""

import dataclasses

import numpy as np
import pytest

from cppo_verl.cli.main import main
from cppo_verl.recording import batches, candidates, files, replay
from cppo_verl.recording.record import Response, StepRecord
from tests.recording.exact import replays_exactly
from tests.recording.synthetic import run, step_record, with_look


@pytest.mark.parametrize("command", [["replay"], ["calibrate", "--masked-share", "0.05"]], ids=lambda c: c[0])
def test_a_torn_file_is_left_out_and_another_tokenizer_changes_no_number(tmp_path, capsys, command):
    def told(status: int = 0):
        assert main([command[0], str(tmp_path), *command[1:]]) == status
        return capsys.readouterr()

    run(tmp_path, steps=3)
    before = told().out
    for step in (2, 3):  # a run that went on with another model
        record = files.read(files.path_of(tmp_path, step))
        far = [dataclasses.replace(r, token_ids=r.token_ids + 10**9) for r in record.responses]
        other = dataclasses.replace(record.header, tokenizer="another", vocabulary=9)
        files.write(tmp_path, StepRecord(other, tuple(far)))
    path = files.write(tmp_path, step_record(4))
    path.write_bytes(path.read_bytes()[:-500])
    said = told()
    assert said.out == before
    assert "the tokenizer changed at step 2\n" in said.err
    assert "step 4 is left out: " in said.err and "step-00000004.parquet is no whole record" in said.err
    for step in (1, 2, 3):
        files.path_of(tmp_path, step).write_bytes(b"PAR1")
    assert "is no whole record" in told(1).err


def empty(response: Response) -> Response:
    """The same without a token."""
    columns = {name: getattr(response, name)[:0] for name in ("pieces", "token_ids", "mask", "log_mu", "advantages")}
    look = {name: getattr(response.first, name)[:0] for name in ("log_pi", "gate", "cause")}
    return dataclasses.replace(response, **columns, first=dataclasses.replace(response.first, **look))


def test_an_empty_response_counts_no_token(tmp_path, capsys):
    record = step_record()
    files.write(tmp_path, StepRecord(record.header, (*record.responses, empty(record.responses[0]))))
    (again,) = files.read_run(tmp_path)
    assert again.responses[-1].length == 0 and again.responses[-1].text == ""
    ran = [candidates.recorded(record.header)]
    alone, both = (replay.replay(batches.batches([one]), ran) for one in (record, again))
    assert (alone.tokens, alone.tallies[0].removed) == (both.tokens, both.tallies[0].removed)
    assert replays_exactly(tmp_path)
    files.write(tmp_path, StepRecord(record.header, tuple(map(empty, record.responses))))  # and nothing else
    assert main(["replay", str(tmp_path)]) == 0
    assert "0 counted tokens of 8 responses" in capsys.readouterr().out
    for goal in (["--masked-share", "0.01"], ["--above-gap", "3"]):
        assert main(["calibrate", str(tmp_path), *goal]) == 1
        assert "masks none of these tokens" in capsys.readouterr().err


def test_responses_of_100k_tokens(tmp_path):
    """Beside short ones: no batch is padded to 100k for all, and every gate is the recorded one."""
    long = step_record(1, groups=1, size=2, length=100_000)
    short = step_record(1, groups=30, size=8, length=50)
    responses = long.responses + short.responses
    files.write(tmp_path, StepRecord(long.header, responses))
    parts = batches.batches(files.read_run(tmp_path))
    assert sum(part.tokens.mask.numel() for part in parts) < 4 * sum(r.length for r in responses)
    ((_, tokens),) = replays_exactly(tmp_path).values()
    assert tokens > 50_000
    assert main(["replay", str(tmp_path), "--preset", "dppo_tv"]) == 0


def test_numbers_that_are_none_do_not_count(tmp_path):
    """on_nonfinite=skip records what the loss saw; its response does not count, as in the metrics."""
    record = step_record(length=60)
    row = next(i for i, r in enumerate(record.responses) if r.length > 5 and (r.advantages != 0).any())
    responses = list(record.responses)
    log_pi = responses[row].first.log_pi.copy()
    log_pi[responses[row].mask.argmax()] = np.nan
    responses[row] = with_look(responses[row], log_pi=log_pi)
    files.write(tmp_path, StepRecord(record.header, tuple(responses)))
    without = StepRecord(record.header, tuple(responses[:row] + responses[row + 1 :]))
    tried = [candidates.recorded(record.header), candidates.of_preset("cppo_soft", record.header)]
    one, other = (replay.replay(batches.batches([r]), tried) for r in (files.read(files.path_of(tmp_path, 1)), without))
    assert [t.removed for t in one.tallies] == [t.removed for t in other.tallies]
    assert one.tokens == other.tokens
    assert main(["calibrate", str(tmp_path), "--masked-share", "0.1"]) == 0
