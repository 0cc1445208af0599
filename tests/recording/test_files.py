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
from tests.recording.synthetic import run, step_record, with_look


def equal(a, b) -> bool:
    if isinstance(a, Look | Response):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return np.array_equal(a, b) and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = step_record(7)
    some = next(r for r in record.responses if r.length > 2)
    own = {"log_rollout": some.log_mu - 1, "output": 3, "versions_behind": None}
    odd = with_look(dataclasses.replace(some, **own, last=some.first), divergence=some.log_mu, update=None)
    assert [f.name for f in dataclasses.fields(Response) if getattr(odd, f.name) is None] == ["versions_behind"]
    record = dataclasses.replace(record, responses=(*record.responses, odd))
    path = files.write(tmp_path, record)
    assert path == tmp_path / "records/step-00000007.parquet"
    again = files.read(path)
    assert again.header == record.header
    assert all(equal(a, b) for a, b in zip(record.responses, again.responses, strict=True))
    assert len({r.length for r in again.responses}) > 2
    assert [len(r.looks) for r in again.responses] == [*[1] * 8, 2]


def test_pandas_reads_a_run_as_one_table(tmp_path):
    run(tmp_path, steps=2)
    frame = pd.read_parquet(tmp_path / files.FOLDER)
    assert frame["step"].tolist() == [1] * 8 + [2] * 8
    assert [type(x) for x in frame["log_mu"][:2]] == [np.ndarray] * 2
    assert frame["advantages"].notna().all() and frame["last_gate"].isna().all()


def test_at_most_13_bytes_a_token_beside_the_text(tmp_path):
    record = step_record(length=2000, groups=4, size=4)
    path = files.write(tmp_path, record)
    group = pyarrow.parquet.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    text = sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith(("pieces", "prompt")))
    tokens = sum(r.length for r in record.responses)
    assert tokens > 10_000
    assert (path.stat().st_size - text) / tokens <= 13


def test_an_array_of_another_length_is_refused():
    some = next(r for r in step_record().responses if r.length > 2)
    with pytest.raises(ValueError, match="log_mu has"):
        dataclasses.replace(some, log_mu=some.log_mu[:-1])
    with pytest.raises(ValueError, match="gate has"):
        with_look(some, gate=some.first.gate[1:])


def test_steps_are_chosen_by_their_numbers(tmp_path):
    with pytest.raises(RecordError, match="holds no record: run with trainer.v1.trust_region.record=16"):
        files.chosen_steps(tmp_path)
    for step in (1, 2, 4, 12):
        files.path_of(tmp_path, step).parent.mkdir(exist_ok=True)
        files.path_of(tmp_path, step).touch()
    for text, found in {
        None: [1, 2, 4, 12], "2": [2], "2:": [2, 4, 12], ":2": [1, 2], "2-4": [2, 4], "1:9": [1, 2, 4], "1::2": [1, 4],
    }.items():  # fmt: skip
        assert files.chosen_steps(tmp_path, text) == found
    for text in ("3", "x", "1:2:0", "1:2:3:4", ":", "-", "13:"):
        with pytest.raises(RecordError, match=f"--steps {text}: "):
            files.chosen_steps(tmp_path, text)


def test_what_cannot_be_read_is_named(tmp_path):
    path = files.path_of(run(tmp_path, steps=2), 2)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(RecordError, match="step-00000002.parquet is no whole record"):
            files.read(path)
    path.write_bytes(whole)
    table = pyarrow.parquet.read_table(path)
    said = {"format": 3, "step": 1, "rule": "cppo", "knobs": {}, "version": "9"}
    later = pyarrow.schema({"a": pyarrow.int32()}, {files.KEY: json.dumps(said)})
    for empty, message in (
        (pyarrow.table({"a": [1]}), "is no whole record"),
        (table.drop_columns(["pieces"]), "is no whole record"),
        (later.empty_table(), "has format 3, written by cppo_verl 9; this one reads up to 2"),
    ):
        pyarrow.parquet.write_table(empty, path)
        with pytest.raises(RecordError, match=message):
            files.read(path)


def test_numbers_agree_with_the_recorded_gates():
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
