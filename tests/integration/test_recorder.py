"""The recorder between verl's loss and the record's file: what the loss saw arrives exactly; nothing else changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils.metric import Metric
from verl.utils.py_functional import append_to_dict

from cppo_verl import presets
from cppo_verl.integration import looks, losses, recorder
from cppo_verl.integration.recorder import Call, Recorder
from cppo_verl.recording import batches, candidates, files, replay
from tests.helpers import Batch, actor_config, random_batch
from tests.integration.micro import jagged
from tests.integration.test_losses import micro_batch
from tests.integration.test_pieces import TOKENIZERS

ROWS, UPDATES, RANKS = 24, 3, 2
KEYS = [f"prompt-{row // 4}_{row % 4}_0" for row in range(ROWS)]
PLACES = {f"prompt-{i}": i for i in range(ROWS // 4)}
TOKENIZER = TOKENIZERS["byte level"]


class Queue:
    """TransferQueue's key-value calls over a dict of rows."""

    def __init__(self, lengths: list[int] | None = None):
        self.rows: dict[str, dict[str, torch.Tensor]] = {}
        for row, (key, n) in enumerate(zip(KEYS, lengths or [1] * ROWS, strict=True)):
            scores, ids = torch.full((n,), row / n), torch.arange(n) % 256
            self.rows[key] = {"prompts": torch.arange(3), "responses": ids, "rm_scores": scores}

    def kv_batch_put(self, keys, partition_id, fields):
        for i, key in enumerate(keys):
            self.rows[key].update({name: fields[name][i] for name in fields.keys()})  # noqa: SIM118

    def kv_batch_get(self, keys, partition_id, select_fields):
        columns = {name: jagged([self.rows[key][name] for key in keys]) for name in select_fields}
        return TensorDict(columns, batch_size=len(keys))


@pytest.fixture
def queue(monkeypatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(recorder, "tq", made)
    return made


def config_of(tmp_path, preset: str = "cppo"):
    overrides = ["actor_rollout_ref.rollout.n=4", "trainer.v1.trust_region.record=8", "data.max_response_length=64"]
    return presets.compose(preset, [*overrides, f"trainer.default_local_dir={tmp_path}/checkpoints"])


def through_the_workers(config, batch: Batch, queue: Queue, epochs: int = 1) -> tuple[list, dict]:
    """What the trainer gets back: updates over the ranks' parts, each in two micro-batches."""
    knobs = OmegaConf.to_container(config.actor_rollout_ref.actor.policy_loss, resolve=True)
    names = ("loss_mode", "divergence", "delta", "delta_b", "gate", "budget", "max_response_length")
    actor = actor_config(**{name: knobs[name] for name in names})
    info = {"dp_size": RANKS, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": ROWS}
    size = ROWS // RANKS // UPDATES
    metrics: dict = {}
    for epoch in range(epochs):
        moved = Batch(batch.log_prob - 0.1 * epoch, batch.old_log_prob, batch.advantages, batch.mask)
        for update in range(UPDATES):
            ranks: list[dict] = [{} for _ in range(RANKS)]
            for rank, reported in enumerate(ranks):
                start = rank * (ROWS // RANKS) + update * size
                for rows in (slice(start, start + size // 2), slice(start + size // 2, start + size)):
                    output, data, _ = micro_batch(moved, rows, info)
                    if looks.FIELD in queue.rows[KEYS[0]]:
                        data[looks.FIELD] = torch.stack([queue.rows[key][looks.FIELD] for key in KEYS[rows]])
                    append_to_dict(reported, losses.trust_region_loss(actor, output, data)[1])
            # as TrainingWorker does: gathered over the ranks, then over the updates
            for key in {*ranks[0], *ranks[1]}:
                values = [rank[key] for rank in ranks if key in rank]
                is_metric = isinstance(values[0], Metric)
                flat = Metric.aggregate_dp(values) if is_metric else [x for value in values for x in value]
                append_to_dict(metrics, {key: flat})
    return metrics.pop(looks.METRIC, []), metrics


def batch_meta(epochs: int = 1) -> KVBatchMeta:
    tags = [{"min_global_steps": 5 if row else 4} for row in range(ROWS)]
    info = {"mini_batch_size": ROWS // UPDATES, "epochs": epochs}
    return KVBatchMeta(keys=list(KEYS), tags=tags, partition_id="train", fields=["prompts"], extra_info=info)


def mark(one: Recorder, step: int = 1, epochs: int = 1, **call):
    return one.mark(batch_meta(epochs), Call(**{"step": step, "places": PLACES, "idle": set(), "ranks": RANKS} | call))


@pytest.mark.parametrize(("preset", "epochs"), [("cppo", 2), ("cppo_soft", 1), ("trm_max", 1), ("minpro", 1)])
def test_what_the_loss_saw_is_what_is_recorded(tmp_path, monkeypatch, preset, epochs):
    config = config_of(tmp_path, preset)
    batch = random_batch(seed=3, rows=ROWS, width=40).to(torch.float32)
    batch.advantages[batch.advantages == 0] = 1.0
    lengths = [max(int(row.nonzero().max()) + 1, 1) if row.any() else 1 for row in batch.mask]
    queue = Queue(lengths)
    monkeypatch.setattr(recorder, "tq", queue)
    one = Recorder(config, TOKENIZER)
    marked, drawn = mark(one, 6, epochs, idle={key for key in KEYS if "prompt-2" in key})
    assert drawn is not None and marked.fields == ["prompts", looks.FIELD]
    one.write(drawn, through_the_workers(config, batch, queue, epochs)[0])
    (record,) = files.read_run(tmp_path)

    uids = [response.uid for response in record.responses]
    assert len(uids) == 8 and len(set(uids)) == 2 and "prompt-2" not in uids  # whole groups that have an advantage
    for response in record.responses:
        row = KEYS.index(f"{response.uid}_{response.sample}_0")
        n = lengths[row]
        own = batch.mask[row, :n].bool().numpy()
        assert response.length == n
        assert np.array_equal(response.mask, own)
        assert np.array_equal(response.first.log_pi, batch.log_prob[row, :n])  # of tool output too
        assert np.array_equal(response.log_mu, batch.old_log_prob[row, :n])
        assert np.array_equal(response.advantages[own], batch.advantages[row, :n].numpy()[own])
        assert response.reward == pytest.approx(row, rel=1e-5)
        assert response.versions_behind == (0 if row else 1)
        assert response.first.update == row // (ROWS // RANKS // UPDATES) % UPDATES
        assert response.text == TOKENIZER.decode(response.token_ids)
        assert response.prompt == TOKENIZER.decode([0, 1, 2])
        assert (response.last is None) == (epochs == 1)
        if response.last is not None:
            assert np.array_equal(response.last.log_pi, batch.log_prob[row, :n] - 0.1)
            assert response.last.update == UPDATES + response.first.update
    result = replay.replay(batches.batches([record]), [candidates.recorded(record.header)])
    assert result.recorded_tokens > 50 and result.tallies[0].differs == 0


def test_which_responses_steps_and_calls_are_drawn(tmp_path, queue):
    one = Recorder(config_of(tmp_path), TOKENIZER)
    one.every = 4
    assert [step for step in range(9, 17) if mark(one, step)[1] is not None] == [12, 16]  # at that distance only
    one.every = 1
    keys = mark(one)[1].batch.keys
    assert len(keys) == 8 and len({key[:8] for key in keys}) == 2
    backwards = batch_meta()
    backwards.reorder(list(range(ROWS))[::-1])  # what finished first does not matter
    assert one.mark(backwards, Call(1, PLACES, set(), 1))[1].batch.keys == keys
    calls = [mark(one, index=i, calls=4)[1] for i in range(4)]
    (found,) = [i for i, call in enumerate(calls) if call is not None]  # of several calls one
    assert min(calls[found].updates) >= found * UPDATES


def test_recording_changes_neither_loss_nor_metrics(tmp_path, queue):
    config = config_of(tmp_path)
    batch = random_batch(seed=3, rows=ROWS, width=40).to(torch.float32)
    seen, without = through_the_workers(config, batch, queue)
    assert seen == []
    mark(Recorder(config, TOKENIZER))
    seen, with_records = through_the_workers(config, batch, queue)
    assert sum(map(len, seen)) == 8
    assert without.keys() == with_records.keys() and len(without) > 20
    one, other = losses.fold(without), losses.fold(with_records)
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_disk_or_queue_that_fails_costs_records_and_one_alarm(tmp_path, queue, monkeypatch, caplog):
    config = config_of(tmp_path)
    batch = Batch(*(x[:, :1] for x in vars(random_batch(seed=3, rows=ROWS, width=40).to(torch.float32)).values()))
    one = Recorder(config, TOKENIZER)
    _, drawn = mark(one)
    seen, _ = through_the_workers(config, batch, queue)
    (tmp_path / "records").write_text("no folder")
    for _ in range(2):
        one.write(drawn, seen)
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "tq", SimpleNamespace())
        marked, found = mark(one)
    assert marked.keys == KEYS and found is None
    alarms = [record.message for record in caplog.records if "the training goes on" in record.message]
    assert len(alarms) == 1 and "exists" in alarms[0]
    (tmp_path / "records").unlink()
    one.write(drawn, seen)  # there is room again
    assert len(files.steps(tmp_path)) == 1 and not one.complained
