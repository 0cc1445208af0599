"""Which of verl's trainers ours goes over, what its checkpoints carry, and how sums of several updates become one."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from cppo_verl import presets
from cppo_verl.integration import anchor, losses, saving, trainer
from cppo_verl.launch import checkpoints
from cppo_verl.trust_region.metrics import PREFIX
from cppo_verl.trust_region.thresholds import next_scale

MODE = "trainer.v1.trust_region.mode"


def made(config) -> PPOTrainer:
    """An instance before its constructor has run."""
    return trainer.TrustRegionTrainer.__new__(trainer.TrustRegionTrainer, config)


@pytest.mark.parametrize("mode", list(trainer.MODES))
def test_one_name_over_each_of_verls_trainers(mode):
    assert get_trainer_cls("trust_region") is trainer.TrustRegionTrainer
    one = made(presets.compose("cppo", [f"{MODE}={mode}"]))
    assert isinstance(one, trainer.TrustRegionTrainer)
    assert isinstance(one, get_trainer_cls(mode))
    # our hooks come before verl's, and verl's own trainer has the last word on everything else
    order = [cls.__name__ for cls in type(one).__mro__]
    assert order.index("SealedCheckpoints") < order.index(trainer.MODES[mode].__name__) < order.index("PPOTrainer")
    assert type(one).on_step_end is trainer.MODES[mode].on_step_end


def test_a_subclass_goes_over_it_too():
    class Mine(trainer.TrustRegionTrainer):
        pass

    one = Mine.__new__(Mine, presets.compose("cppo_async"))
    assert isinstance(one, Mine) and isinstance(one, get_trainer_cls("colocate_async"))


def test_the_proximal_anchor_sets_verls_switches_and_keeps_what_a_user_set():
    config = presets.compose("cppo", ["actor_rollout_ref.actor.policy_loss.anchor=proximal"])
    anchor.install(config)
    correction = config.algorithm.rollout_correction
    assert (correction.bypass_mode, correction.rollout_is, correction.rollout_is_threshold) == (False, "token", 2.0)
    config.algorithm.rollout_correction.rollout_is = "sequence"
    anchor.install(config)
    assert config.algorithm.rollout_correction.rollout_is == "sequence"
    config = presets.compose("cppo")
    before = OmegaConf.to_container(config.algorithm)
    anchor.install(config)
    assert OmegaConf.to_container(config.algorithm) == before


class Base:
    """Stands where verl's trainer stands: writes what verl writes last."""

    def __init__(self, config, step: int):
        self.config, self.global_steps, self.steps_per_epoch = config, step, 10
        self._unlogged = (None, {}, {}, 0.0)

    def _compute_metrics(self, *_, **__):
        return None

    def _save_checkpoint(self):
        folder = checkpoints.Path(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")
        (folder / checkpoints.SEAL).write_bytes(b"")
        if self.config.trainer.v1.trainer_mode != "sync":
            (folder / checkpoints.QUEUE).mkdir()

    def _load_checkpoint(self):
        return None


class Saving(saving.SealedCheckpoints, Base):
    pass


def run_config(tmp_path, mode: str):
    return OmegaConf.create(
        {"trainer": {"default_local_dir": str(tmp_path), "resume_mode": "auto", "v1": {"trainer_mode": mode}}}
    )


def test_a_checkpoint_carries_the_scale_to_the_bit(tmp_path):
    one = Saving(run_config(tmp_path, "sync"), 3)
    one.scale = next_scale(1.0, 0.1234567, 0.08)
    one._save_checkpoint()
    other = Saving(run_config(tmp_path, "sync"), 3)
    assert other.scale == 1.0
    other._load_checkpoint()
    assert other.scale == one.scale != 1.0
    fresh = Saving(run_config(tmp_path, "sync"), 0)
    fresh._load_checkpoint()
    assert fresh.scale == 1.0


def test_an_asynchronous_checkpoint_without_its_queue_is_not_whole(tmp_path):
    from tests.faults.saved import save

    for step in (2, 4):
        save(tmp_path, step)
        (tmp_path / f"global_step_{step}" / checkpoints.STATE).write_text(json.dumps({"mode": "colocate_async"}))
    (tmp_path / "global_step_2" / checkpoints.QUEUE).mkdir()
    assert checkpoints.fault(tmp_path / "global_step_4") == "transfer_queue is missing"
    step, notes = checkpoints.settle(tmp_path)
    assert step == 2
    assert any("transfer_queue is missing" in note for note in notes)


def test_a_step_written_again_loses_its_old_queue_first(tmp_path):
    one = Saving(run_config(tmp_path, "colocate_async"), 3)
    one._save_checkpoint()
    folder = tmp_path / "global_step_3"
    assert (folder / checkpoints.QUEUE).is_dir()
    checkpoints.unseal(folder)
    assert not (folder / checkpoints.QUEUE).exists() and not (folder / checkpoints.SEAL).exists()


def test_the_sums_of_several_calls_are_one_step():
    """Two calls of one mini-batch each: 1 of 4 tokens masked, then 3 of 12."""
    calls = [
        {PREFIX + "sum/masked_share": [1.0], PREFIX + "count/tokens": [4.0], PREFIX + "divergence_max": [0.5]},
        {PREFIX + "sum/masked_share": [3.0], PREFIX + "count/tokens": [12.0], PREFIX + "divergence_max": [0.2]},
    ]
    folded = losses.fold(losses.joined(calls))
    assert folded[PREFIX + "masked_share"] == [4 / 16]
    assert folded[PREFIX + "first_update/masked_share"] == [1 / 4]
    assert folded[PREFIX + "divergence_max"] == [0.5, 0.2]
    assert losses.tokens_of(calls) == 16


def test_ages_that_no_response_has_are_not_logged():
    reported = {}
    for age, tokens in ((0, 0.0), (2, 5.0)):
        reported[PREFIX + f"sum/divergence_by_staleness/{age}"] = [tokens / 10]
        reported[PREFIX + f"count/divergence_by_staleness/{age}/tokens"] = [tokens]
    folded = losses.fold(reported)
    assert (
        folded[PREFIX + "divergence_by_staleness/2"]
        == folded[PREFIX + "first_update/divergence_by_staleness/2"]
        == [0.1]
    )
    assert not [name for name in folded if name.endswith("/0")]


def test_the_scale_follows_the_exact_share_and_rests_without_tokens():
    knobs = {"budget_target": 0.08}
    one = SimpleNamespace(
        config=OmegaConf.create({"actor_rollout_ref": {"actor": {"policy_loss": knobs}}}),
        scale=2.0,
        reported=[{PREFIX + "count/tokens": [10.0]}],
    )
    metrics = {PREFIX + "masked_share": 0.16}
    trainer.TrustRegionTrainer._steer(one, metrics)
    assert metrics["trust_region/threshold_scale"] == 2.0  # of the step that was
    assert one.scale == next_scale(2.0, 0.16, 0.08) > 2.0
    one.reported, scale = [{PREFIX + "count/tokens": [0.0]}], one.scale
    trainer.TrustRegionTrainer._steer(one, {PREFIX + "masked_share": 0.0})
    assert one.scale == scale
