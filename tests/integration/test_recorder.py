"""The recorder between verl's loss and the record's file: what the loss saw arrives exactly; nothing else changes."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transfer_queue import KVBatchMeta
from transformers import PreTrainedTokenizerFast
from verl.utils import tensordict_utils
from verl.utils.metric import Metric
from verl.utils.py_functional import append_to_dict
from verl.workers.config import ActorConfig

from cppo_verl import presets
from cppo_verl.integration import looks, losses, recorder
from cppo_verl.integration.pieces import pieces
from cppo_verl.integration.recorder import Call, Recorder
from cppo_verl.recording import batches, candidates, files, replay
from cppo_verl.recording.record import Header, StepRecord
from tests.helpers import Batch, actor_config, random_batch
from tests.integration.test_losses import micro_batch
from tests.recording.synthetic import step_record

ROWS, UPDATES, RANKS = 24, 3, 2
KEYS = [f"prompt-{row // 4}_{row % 4}_0" for row in range(ROWS)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with tokens that end inside a character."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["hello world the sum of twelve"] * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", name_or_path="bytes")


class Queue:
    """TransferQueue's key-value calls over a dict of rows."""

    def __init__(self, rows: dict[str, dict[str, torch.Tensor]]):
        self.rows = rows

    def kv_batch_put(self, keys, partition_id, fields):
        for i, key in enumerate(keys):
            self.rows[key].update({name: fields[name][i] for name in fields.keys()})  # noqa: SIM118

    def kv_batch_get(self, keys, partition_id, select_fields):
        columns = {
            name: torch.nested.as_nested_tensor([self.rows[key][name] for key in keys], layout=torch.jagged)
            for name in select_fields
        }
        return TensorDict(columns, batch_size=len(keys))


def config_of(tmp_path, preset: str = "cppo", *overrides: str):
    return presets.compose(
        preset,
        [
            "actor_rollout_ref.rollout.n=4",
            "trainer.v1.trust_region.record=8",
            f"trainer.default_local_dir={tmp_path}/checkpoints",
            "data.max_response_length=64",
            *overrides,
        ],
    )


def queue_of(batch: Batch, lengths: list[int]) -> Queue:
    rows = {}
    for row, (key, n) in enumerate(zip(KEYS, lengths, strict=True)):
        rows[key] = {
            "prompts": torch.arange(3),
            "responses": torch.arange(n) % 270,
            "rm_scores": torch.full((n,), row / n),
        }
    return Queue(rows)


def through_the_workers(config, batch: Batch, marked: KVBatchMeta, queue: Queue, epochs: int = 1) -> tuple[list, dict]:
    """What the trainer gets back: updates over the ranks' parts, in micro-batches of three rows."""
    actor = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        loss_agg_mode="seq-mean-token-sum-norm",
        loss_scale_factor=64,
        policy_loss=actor_config(**options_of(config)).policy_loss,
    )
    info = {"dp_size": RANKS, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": ROWS}
    size = ROWS // RANKS // UPDATES
    metrics: dict = {}
    for epoch in range(epochs):
        for update in range(UPDATES):
            ranks = []
            for rank in range(RANKS):
                start = rank * (ROWS // RANKS) + update * size
                aggregated: dict = {}
                for rows in (slice(start, start + size // 2), slice(start + size // 2, start + size)):
                    moved = Batch(batch.log_prob - 0.1 * epoch, batch.old_log_prob, batch.advantages, batch.mask)
                    output, data, _ = micro_batch(moved, rows, info)
                    if looks.FIELD in queue.rows[KEYS[0]]:
                        numbers = [queue.rows[key][looks.FIELD] for key in KEYS[rows]]
                        data[looks.FIELD] = torch.stack(numbers)
                    _, reported = losses.trust_region_loss(actor, output, data)
                    append_to_dict(aggregated, reported)
                ranks.append(aggregated)
            # as TrainingWorker does: gathered over the ranks, then over the updates
            gathered = {key: [rank[key] for rank in ranks if key in rank] for key in {*ranks[0], *ranks[1]}}
            flat = {
                key: Metric.aggregate_dp(values)
                if isinstance(values[0], Metric)
                else [x for value in values for x in value]
                for key, values in gathered.items()
            }
            append_to_dict(metrics, flat)
    seen = metrics.pop(looks.METRIC, [])
    return seen, metrics


def options_of(config) -> dict:
    knobs = OmegaConf.to_container(config.actor_rollout_ref.actor.policy_loss, resolve=True)
    return {
        key: knobs[key]
        for key in ("loss_mode", "divergence", "delta", "delta_b", "gate", "budget", "max_response_length")
    }


def batch_meta(epochs: int = 1) -> KVBatchMeta:
    return KVBatchMeta(
        keys=list(KEYS),
        tags=[{"min_global_steps": 5 if row else 4} for row in range(ROWS)],
        partition_id="train",
        fields=["prompts"],
        extra_info={"mini_batch_size": ROWS // UPDATES, "epochs": epochs},
    )


def recorded(
    tmp_path, tokenizer, monkeypatch, preset="cppo", epochs=1, *overrides
) -> tuple[StepRecord, Batch, list[int]]:
    config = config_of(tmp_path, preset, *overrides)
    batch = random_batch(seed=3, rows=ROWS, width=40).to(torch.float32)
    batch.advantages[batch.advantages == 0] = 1.0
    lengths = [max(int(row.nonzero().max()) + 1, 1) if row.any() else 1 for row in batch.mask]
    queue = queue_of(batch, lengths)
    monkeypatch.setattr(recorder, "tq", queue)
    one = Recorder(config, tokenizer)
    places = {f"prompt-{i}": i for i in range(ROWS // 4)}
    marked, drawn = one.mark(batch_meta(epochs), Call(6, places, {key for key in KEYS if "prompt-2" in key}, RANKS))
    assert drawn is not None and marked.fields == ["prompts", looks.FIELD]
    seen, _ = through_the_workers(config, batch, marked, queue, epochs)
    one.write(drawn, seen, "train")
    (record,) = files.read_run(tmp_path)
    return record, batch, lengths


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("preset", ["cppo", "cppo_soft", "trm_max", "minpro"])
def test_what_the_loss_saw_is_what_is_recorded(tmp_path, tokenizer, monkeypatch, preset, epochs):
    record, batch, lengths = recorded(tmp_path, tokenizer, monkeypatch, preset, epochs)
    assert len(record.responses) == 8
    uids = {response.uid for response in record.responses}
    assert len(uids) == 2 and "prompt-2" not in uids  # whole groups, and none without an advantage
    for response in record.responses:
        row = KEYS.index(f"{response.uid}_{response.sample}_0")
        n = lengths[row]
        assert response.length == n
        assert np.array_equal(response.mask, batch.mask[row, :n].bool().numpy())
        assert np.array_equal(response.first.log_pi, batch.log_prob[row, :n].numpy())
        assert np.array_equal(response.log_mu, batch.old_log_prob[row, :n].numpy())
        assert np.array_equal(response.advantages, batch.advantages[row, :n].numpy())
        assert response.reward == pytest.approx(row, rel=1e-5)
        assert response.versions_behind == (0 if row else 1)
        assert response.first.update == row // (ROWS // RANKS // UPDATES) % UPDATES
        assert response.text == tokenizer.decode(response.token_ids)
        assert response.prompt == tokenizer.decode([0, 1, 2])
        assert (response.last is None) == (epochs == 1)
        if response.last is not None:
            assert np.array_equal(response.last.log_pi, batch.log_prob[row, :n].numpy() - np.float32(0.1))
            assert response.last.update == UPDATES + response.first.update
    parts = batches.batches([record])
    result = replay.replay(parts, [candidates.recorded(record.header)])
    assert result.recorded_tokens > 50 and result.tallies[0].differs == 0


def test_the_same_prompts_are_drawn_again(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(recorder, "tq", Queue({key: {} for key in KEYS}))
    one = Recorder(config_of(tmp_path), tokenizer)
    places = {f"prompt-{i}": i for i in range(ROWS // 4)}
    drawn = [one.mark(batch_meta(), Call(step, places, set(), 1))[1].keys for step in (1, 2, 3, 4, 1)]
    assert drawn[0] == drawn[-1]
    assert len({tuple(keys) for keys in drawn}) > 2
    assert all(len(keys) == 8 and len({key[:8] for key in keys}) == 2 for keys in drawn)
    backwards = batch_meta()
    backwards.reorder(list(range(ROWS))[::-1])  # what finished first does not matter
    assert one.mark(backwards, Call(1, places, set(), 1))[1].keys == drawn[0]


def test_recording_changes_neither_loss_nor_metrics(tmp_path, tokenizer, monkeypatch):
    config = config_of(tmp_path)
    batch = random_batch(seed=3, rows=ROWS, width=40).to(torch.float32)
    queue = queue_of(batch, [1] * ROWS)
    seen, without = through_the_workers(config, batch, batch_meta(), queue)
    assert seen == []
    monkeypatch.setattr(recorder, "tq", queue)
    Recorder(config, tokenizer).mark(batch_meta(), Call(1, {}, set(), RANKS))
    seen, with_records = through_the_workers(config, batch, batch_meta(), queue)
    assert sum(map(len, seen)) == 8
    assert without.keys() == with_records.keys() and len(without) > 20
    one, other = losses.fold(without), losses.fold(with_records)
    for key in one:
        assert np.array_equal(one[key], other[key]), key


def test_an_error_costs_the_record_and_not_the_run(tmp_path, tokenizer, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "tq", Queue({key: {} for key in KEYS}))
    one = Recorder(config_of(tmp_path), tokenizer)
    call = Call(1, {}, set(), 1)
    marked, drawn = one.mark(batch_meta(), call)
    monkeypatch.setattr(recorder, "tq", SimpleNamespace(kv_batch_put=full, kv_batch_get=full))
    with caplog.at_level(logging.ERROR):
        same, none = one.mark(batch_meta(), call)
        one.write(drawn, [], "train")
        one.write(drawn, [], "train")
    assert none is None and same.keys == KEYS
    assert len([r for r in caplog.records if "no record of this step" in r.message]) == 1  # said once
    assert not files.steps(tmp_path)


def test_a_step_is_recorded_only_at_the_distance(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(recorder, "tq", Queue({key: {} for key in KEYS}))
    record = step_record(8)
    files.write(tmp_path, StepRecord(Header(**{**vars(record.header), "every": 4}), record.responses))
    one = Recorder(config_of(tmp_path), tokenizer)
    found = [step for step in range(9, 17) if one.mark(batch_meta(), Call(step, {}, set(), 1))[1] is not None]
    assert found == [12, 16]


def test_of_several_calls_of_a_step_one_is_recorded(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(recorder, "tq", Queue({key: {} for key in KEYS}))
    one = Recorder(config_of(tmp_path), tokenizer)
    chosen = []
    for step in range(1, 9):
        calls = [one.mark(batch_meta(), Call(step, {}, set(), 1, 1.0, i, 4))[1] for i in range(4)]
        (found,) = [i for i, call in enumerate(calls) if call is not None]
        chosen.append(found)
        assert min(calls[found].updates) >= found * UPDATES
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("text", ["hello 🙂 答案是 12 é", "", "plain words only", "\n\n  x<|end|>"])
def test_pieces_are_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    for end in range(len(ids) + 1):
        found = pieces(tokenizer, ids[:end])
        assert len(found) == end
        assert "".join(found) == tokenizer.decode(ids[:end])


def test_pieces_of_any_bytes(tokenizer):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(tokenizer), 500).tolist()
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)
    slow = SimpleNamespace(decode=lambda ids, skip_special_tokens: f"<{ids[0]}>")
    assert pieces(slow, [3, 4]) == ["<3>", "<4>"]


def test_info_travels(tokenizer):
    """The engine's own non-tensor fields do not disturb the marks."""
    _, data, _ = micro_batch(random_batch(0, 4, 8), slice(0, 4), {"a": 1})
    with looks.watch(data) as none:
        assert none is None
    data[looks.FIELD] = torch.tensor([-1, -1, -1, -1])
    with looks.watch(data) as none:
        assert none is None and looks.watching() is None
    data[looks.FIELD] = torch.tensor([-1, 5, -1, 0])
    with looks.watch(data) as found:
        assert found.numbers == [5, 0] and found.rows.tolist() == [1, 3]
        assert looks.watching() is found
    assert looks.watching() is None
    assert tensordict_utils.get_non_tensor_data(data, "a", None) == 1
