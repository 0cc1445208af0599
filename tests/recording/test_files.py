"""Records come back as they were written, are bounded in size, and say what is wrong with a damaged file."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import Look, RecordError, Response
from tests.recording.synthetic import run, step_record


def equal(a, b) -> bool:
    if isinstance(a, Look | Response):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_record_comes_back_as_it_was_written(tmp_path, epochs):
    record = step_record(7, epochs=epochs)
    path = files.write(tmp_path, record)
    assert path == tmp_path / "records/step-00000007.parquet"
    again = files.read(path)
    assert again.header == record.header == files.read_header(path)
    assert len(again.responses) == 8
    assert all(equal(a, b) for a, b in zip(record.responses, again.responses, strict=True))
    assert len({r.length for r in again.responses}) > 2
    assert [len(r.looks) for r in again.responses] == [epochs] * 8


def test_advantages_that_differ_and_a_top_k_come_back(tmp_path):
    record = step_record()
    some = next(r for r in record.responses if r.length > 2)
    advantages = np.arange(some.length, dtype=np.float32)
    look = dataclasses.replace(some.first, divergence=some.log_mu, top_k_log_pi=np.zeros(3, np.float32), update=None)
    odd = dataclasses.replace(
        some, advantages=advantages, top_k_mu=np.array([1, -2, 3], np.int16), first=look, versions_behind=None
    )
    again = files.read(files.write(tmp_path, dataclasses.replace(record, responses=(odd,)))).responses[0]
    assert equal(odd, again)
    assert again.first.update is None and again.versions_behind is None


def test_pandas_reads_a_run_as_one_table(tmp_path):
    run(tmp_path, steps=2)
    frame = pd.read_parquet(tmp_path / files.FOLDER)
    assert frame["step"].tolist() == [1] * 8 + [2] * 8
    assert [type(x) for x in frame["log_mu"][:2]] == [np.ndarray] * 2


@pytest.mark.parametrize(("options", "bytes_a_token"), [({}, 13), ({"gate": "soft", "epochs": 2}, 24)])
def test_at_most_24_bytes_a_token_beside_the_text(tmp_path, options, bytes_a_token):
    record = step_record(length=2000, groups=4, size=4, **options)
    path = files.write(tmp_path, record)
    metadata = pyarrow.parquet.read_metadata(path)
    text = sum(
        metadata.row_group(0).column(i).total_compressed_size
        for i in range(metadata.num_columns)
        if metadata.row_group(0).column(i).path_in_schema.startswith(("pieces", "prompt"))
    )
    tokens = sum(r.length for r in record.responses)
    assert tokens > 10_000
    assert (path.stat().st_size - text) / tokens <= bytes_a_token


def test_an_array_of_another_length_is_refused(tmp_path):
    record = step_record()
    some = next(r for r in record.responses if r.length > 2)
    bad = dataclasses.replace(some, log_mu=some.log_mu[:-1])
    with pytest.raises(ValueError, match="log_mu has"):
        files.write(tmp_path, dataclasses.replace(record, responses=(bad,)))
    assert not list(tmp_path.rglob("*.parquet"))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecordError, match="holds no record: run with trainer.v1.trust_region.record=16"):
        list(files.read_run(tmp_path))
    path = files.path_of(run(tmp_path, steps=2), 2)
    with pytest.raises(RecordError, match="no record of step 9; it has 2 of steps 1 to 2"):
        list(files.read_run(tmp_path, [9]))

    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(content)
        for reader in (files.read, files.read_header):
            with pytest.raises(RecordError, match="step-00000002.parquet is no whole record"):
                reader(path)
    with pytest.raises(RecordError, match="was not written by cppo_verl"):
        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
        files.read(path)
    later = pyarrow.schema(
        {"a": pyarrow.int32()},
        {files.KEY: json.dumps({"format": 2, "step": 1, "rule": "cppo", "knobs": {}, "version": "9"})},
    )
    pyarrow.parquet.write_table(later.empty_table(), path)
    with pytest.raises(RecordError, match="has format 2, written by cppo_verl 9; this one reads up to 1"):
        files.read(path)


def test_numbers_agree_with_the_recorded_gates(tmp_path):
    """S_t <= allowance and w_t D_t <= delta is what CPPO's gate says, but for the first clause (Eq. 10)."""
    record = step_record(budget="fixed", delta_b=0.01)
    found = numbers.of(record.header, record.responses)
    assert [len(n.divergence) for n in found] == [r.length for r in record.responses]
    masked = kept = 0
    for n, r in zip(found, record.responses, strict=True):
        within = (n.weight * n.divergence <= 0.15) & (n.spent <= n.allowance)
        away = r.advantages * (r.first.log_pi - r.log_mu) > 0
        clear = r.mask & (np.abs(n.spent - n.allowance) > 1e-5)
        assert np.array_equal((r.first.gate == 1)[clear], (within | ~away)[clear])
        masked, kept = masked + (r.first.gate[r.mask] == 0).sum(), kept + (r.first.gate[r.mask] == 1).sum()
        assert n.delta_b == pytest.approx(0.01)
    assert masked > 10 and kept > 10


def test_weights_follow_the_width_that_was():
    """horizon=max without a maximum takes the width of the micro-batch, which differs from response to response."""
    record = step_record(horizon="max", max_response_length=None, w_min=0.5)
    wide = dataclasses.replace(record.responses[0], width=80)
    narrow = record.responses[1]
    found = numbers.of(record.header, [wide, narrow])
    for one, width in zip(found, (80, 40), strict=True):
        columns = np.arange(len(one.weight))
        own = one.weight > 0
        assert np.allclose(one.weight[own], (1 - 0.5 * columns / (width - 1))[own], atol=1e-6)
