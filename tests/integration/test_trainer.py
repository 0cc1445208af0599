"""Which of verl's trainers ours goes over, what its checkpoints carry, and how sums of several updates become one."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.metric_utils import RolloutMoELoadBalanceMetricsAccumulator
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from cppo_verl import presets
from cppo_verl.integration import checks, reproducible, saving, seeded, trainer
from cppo_verl.launch import checkpoints
from cppo_verl.trust_region.metrics import PREFIX
from cppo_verl.trust_region.thresholds import next_scale
from tests.faults.saved import save
from tests.integration.micro import jagged

MODE = "trainer.v1.trust_region.mode"
GROUP_OF_8 = "actor_rollout_ref.rollout.n=8"


@pytest.mark.parametrize("mode", checks.MODES)
def test_one_name_over_each_of_verls_trainers(mode, monkeypatch):
    kind = trainer.MODES[mode]
    monkeypatch.setattr(kind, "__init__", lambda self, config: None)
    made = get_trainer_cls("trust_region")(config=presets.compose("cppo", [f"{MODE}={mode}"]))
    assert type(made) is kind and issubclass(kind, get_trainer_cls(mode))
    # our hooks come before verl's, and verl's own trainer has the last word on everything else
    order = [cls.__name__ for cls in kind.__mro__]
    assert order.index("SealedCheckpoints") < order.index(get_trainer_cls(mode).__name__) < order.index("PPOTrainer")
    assert kind.on_step_end is get_trainer_cls(mode).on_step_end


def test_the_proximal_anchor_sets_verls_switches_and_keeps_what_a_user_set():
    config = presets.compose("cppo", ["actor_rollout_ref.actor.policy_loss.anchor=proximal"])
    trainer.measure_from_the_steps_start(config)
    correction = config.algorithm.rollout_correction
    assert (correction.bypass_mode, correction.rollout_is, correction.rollout_is_threshold) == (False, "token", 2.0)
    config.algorithm.rollout_correction.rollout_is = "sequence"
    trainer.measure_from_the_steps_start(config)
    assert config.algorithm.rollout_correction.rollout_is == "sequence"


@pytest.mark.parametrize("estimator", ["group_relative", "grpo", "gae"])
def test_groups_of_equal_rewards_are_known_whatever_the_estimator(estimator, monkeypatch):
    """Two prompts of two sessions, the first of which returns two outputs, and a row of padding."""
    keys = ["a_0_0", "a_0_1", "a_1_0", "b_0_0", "b_1_0", "p_0_0"]
    rewards = [0.0, 1.0, 0.0, 0.7, 0.7, 0.0]
    rows = [torch.tensor([0.0, reward]) for reward in rewards]
    masks = [torch.tensor([1, 1])] * 5 + [torch.tensor([0, 0])]
    stored = {"rm_scores": rows, "response_mask": masks}
    nested = {name: jagged(values) for name, values in stored.items()}
    put: list[TensorDict] = []
    queue = SimpleNamespace(
        kv_batch_get=lambda keys, partition_id, select_fields: {name: nested[name] for name in select_fields},
        kv_batch_put=lambda keys, partition_id, fields: put.append(fields) or batch,
    )
    monkeypatch.setattr(trainer, "transfer_queue", queue)
    tags = [{"is_padding": key == "p_0_0", "seq_len": 5} for key in keys]
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    one = object.__new__(trainer.SyncTrainer)
    one.config = presets.compose("cppo", [f"algorithm.adv_estimator={estimator}"])
    monkeypatch.setattr(trainer.PPOTrainer, "_compute_advantage", lambda self, batch, metrics: batch)
    metrics: dict = {}
    one._compute_advantage(batch, metrics)
    alone = {"p_0_0"} if estimator == "group_relative" else set()
    assert one.zero_variance == (set() if estimator == "gae" else {"b_0_0", "b_1_0"} | alone)
    assert metrics.get("trust_region/zero_variance_share") == (None if estimator == "gae" else 2 / 5)
    if estimator != "group_relative":
        assert not put
        return
    (fields,) = put
    found = [row.tolist() for row in fields["advantages"].unbind()]
    half = 0.5**0.5  # of two members: mean 1/2, deviation 1/sqrt(2)
    assert np.array(found) == pytest.approx(np.array([[half] * 2, [half] * 2, [-half] * 2, *[[0, 0]] * 3]), abs=1e-5)


class Base:
    """Stands where verl's trainer stands: writes what verl writes last, and counts experts as verl does."""

    def __init__(self, folder, step: int, mode: str = "sync"):
        trainer = {"default_local_dir": str(folder), "resume_mode": "auto", "v1": {"trainer_mode": mode}}
        self.config, self.global_steps, self.steps_per_epoch = OmegaConf.create({"trainer": trainer}), step, 10
        self._unlogged = (None, {}, {}, 0.0)
        self._rollout_moe_lb_metrics_accumulator = RolloutMoELoadBalanceMetricsAccumulator()
        self._rollout_moe_lb_metrics_accumulator.load_counts = torch.zeros(2)

    def _compute_metrics(self, batch, metrics, *_, **__):
        self._rollout_moe_lb_metrics_accumulator.load_counts += 1
        metrics["load"] = self._rollout_moe_lb_metrics_accumulator.load_counts[0].item()

    def _save_checkpoint(self):
        folder = save(Path(self.config.trainer.default_local_dir), self.global_steps)
        if self.config.trainer.v1.trainer_mode != "sync":
            (folder / checkpoints.QUEUE).mkdir()

    def _load_checkpoint(self):
        return None


class Saving(saving.SealedCheckpoints, Base):
    pass


def test_a_checkpoint_carries_the_scale_to_the_bit_and_counts_nothing_twice(tmp_path):
    one = Saving(tmp_path, 3)
    one.scale = next_scale(1.0, 0.1234567, 0.08)
    one._save_checkpoint()
    assert json.loads((tmp_path / "global_step_3" / checkpoints.RECORD).read_text())["data"]["load"] == 1
    metrics: dict = {}
    one._compute_metrics(None, metrics)  # as verl does behind the checkpoint
    assert metrics["load"] == 1
    for step, scale in ((3, one.scale), (0, 1.0)):  # step 0: nothing to resume from
        other = Saving(tmp_path, step)
        other._load_checkpoint()
        assert other.scale == scale
    assert one.scale != 1.0


def test_an_asynchronous_checkpoint_is_whole_with_its_own_queue_only(tmp_path):
    Saving(tmp_path, 3, "colocate_async")._save_checkpoint()
    folder = tmp_path / "global_step_3"
    assert checkpoints.fault(folder) is None
    checkpoints.unseal(folder)  # the step is written again
    assert not (folder / checkpoints.QUEUE).exists() and not (folder / checkpoints.SEAL).exists()
    save(tmp_path, 3)
    assert checkpoints.fault(folder) == "transfer_queue is missing"


class Loading:
    """Stands where verl's trainer stands: one prompt a batch of the data loader."""

    config = OmegaConf.create()

    def _fetch_one_gen_batch(self):
        return {"uid": [f"u{len(self._fetched)}"]}

    def _balance_batch(self, batch):
        return batch


class Ordered(reproducible.LoaderOrder, Loading):
    def _waiting(self):
        return {"u1", "u3"}


@pytest.mark.parametrize(("mode", "left"), [("sync", ()), ("colocate_async", ("u1", "u3"))])
def test_prompts_that_were_taken_or_evicted_are_forgotten(mode: str, left: tuple):
    one = Ordered()
    one.trainer_mode = mode
    for _ in range(4):
        one._fetch_one_gen_batch()
    one._balance_batch(SimpleNamespace(keys=[]))
    assert list(one.loader_places) == ["u0", "u1", "u2", "u3"]
    assert one._fetched == left


def test_equal_prompts_of_a_step_have_places(monkeypatch):
    monkeypatch.setattr(AgentLoopManagerTQ, "generate_sequences", lambda self, prompts: None)
    manager = object.__new__(seeded.SeededAgentLoopManager)

    def places(texts: str, step: int = 1, validate: bool = False) -> list[int]:
        prompts = {"global_steps": step, "validate": validate, "raw_prompt": texts}
        manager.generate_sequences(prompts)
        return prompts[seeded.PLACE].tolist()

    assert places("xyx") == [0, 0, 1] and places("xy") == [2, 1]  # a second batch of the same step
    assert places("x", validate=True) == places("x", step=2) == [0]


def test_the_scale_follows_the_exact_share_and_rests_without_tokens():
    one = SimpleNamespace(knobs=SimpleNamespace(budget_target=0.08), scale=2.0)
    metrics = {PREFIX + "masked_share": 0.16}
    for tokens in (10.0, 0.0):
        one.reported = [{PREFIX + "count/tokens": [tokens]}]
        trainer.TrustRegion._steer(one, metrics)
        assert one.scale == next_scale(2.0, 0.16, 0.08) > 2.0
        assert metrics["trust_region/threshold_scale"] == (2.0 if tokens else one.scale)  # of the step that was
