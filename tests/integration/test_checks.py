"""Composed configs: every preset is accepted, and each thing that would make a run wrong is named before it starts."""

import subprocess
import sys
import time

import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.integration.config import TrustRegionLossConfig

KNOB = "actor_rollout_ref.actor.policy_loss."
MODE = "trainer.v1.trust_region.mode"
GROUP_OF_8 = "actor_rollout_ref.rollout.n=8"


@pytest.mark.parametrize("name", presets.names())
def test_presets_compose_and_pass(name):
    config = presets.compose(name, [GROUP_OF_8])
    checks.require(config)
    knobs = config.actor_rollout_ref.actor.policy_loss
    assert knobs._target_ == f"{TrustRegionLossConfig.__module__}.{TrustRegionLossConfig.__qualname__}"
    assert config.actor_rollout_ref.actor.loss_scale_factor == config.data.max_response_length


def test_presets_are_the_ones_promised():
    promised = ["cppo", "cppo_soft", "cppo_kl", "dppo_tv", "dppo_kl", "trm_max", "trm_avg", "minpro", "cispo", "grpo"]
    promised += ["cppo_restore", "dppo_restore", "nfpo", "gbpo", "gspo", "sapo"]
    assert set(promised) <= set(presets.names())


def test_paper_defaults():
    knobs = presets.compose("cppo").actor_rollout_ref.actor.policy_loss
    assert (knobs.delta, knobs.delta_b, knobs.w_min) == (0.15, 0.02, 0.8)
    assert (knobs.budget, knobs.budget_quantile, knobs.budget_scale, knobs.budget_cap) == ("quantile", 0.9, 1.0, 2.0)
    assert knobs.ratio_cap == 20.0
    kl = presets.compose("cppo_kl").actor_rollout_ref.actor.policy_loss
    assert (kl.divergence, kl.delta, kl.delta_b, kl.w_min) == ("kl", 0.1, 0.002, 0.8)


@pytest.mark.parametrize(
    ("preset", "override", "words"),
    [
        ("cppo", KNOB + "w_min=0", [KNOB + "w_min=0", "(0, 1]"]),
        ("cppo", KNOB + "delta=-0.1", [KNOB + "delta=-0.1", "(0, 1]"]),
        ("cppo", KNOB + "horizon=longest", [KNOB + "horizon='longest'", "response, max"]),
        ("cppo", "+" + KNOB + "delta_c=1", ["delta_c=1", "no knob"]),
        ("cppo", KNOB + "loss_mode=cpo", ["loss_mode='cpo'", "cppo"]),
        ("cppo", "algorithm.rollout_correction.bypass_mode=false", ["bypass_mode=False", "calculate_log_probs=True"]),
        ("dppo_tv", "actor_rollout_ref.rollout.calculate_log_probs=false", ["calculate_log_probs=False"]),
        ("cppo", "trainer.use_v1=false", ["trainer.use_v1=False"]),
        ("cppo", "trainer.v1.trust_region.record=-1", ["trust_region.record=-1", "whole number of at least 0"]),
        ("cppo", "trainer.v1.trust_region.record_limit_mb=0", ["record_limit_mb=0", "at least 1"]),
        ("cppo", "actor_rollout_ref.rollout.top_p=0.9", ["top_p=0.9", "set it to 1"]),
        ("cppo", "actor_rollout_ref.rollout.top_k=50", ["top_k=50", "set it to -1"]),
        ("cppo", "actor_rollout_ref.rollout.temperature=0", ["temperature=0"]),
        ("cppo", "+actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend=uni", ["uni", "=2", "mp"]),
        ("cppo", "actor_rollout_ref.actor.clip_ratio=0.15", ["clip_ratio=0.15", "no effect", "delta"]),
        ("cppo", "actor_rollout_ref.actor.clip_ratio_c=10", ["clip_ratio_c=10", "ratio_cap"]),
        ("cppo", "actor_rollout_ref.actor.loss_scale_factor=null", ["loss_scale_factor", "data.max_response_length"]),
        ("cppo", "actor_rollout_ref.rollout.n=1", ["rollout.n=1", "2 or more"]),
        ("trm_max", KNOB + "divergence=tv", ["divergence='tv'", "KL"]),
        ("cppo", KNOB + "restore_strength=0", [KNOB + "restore_strength=0", "(0, 1]"]),
        ("trm_max", KNOB + "gate=restore", [KNOB + "gate=restore has no effect", "set it to hard", "cppo and dppo"]),
        ("minpro", KNOB + "gate=soft", [KNOB + "gate=soft has no effect under loss_mode=minpro"]),
        ("grpo", KNOB + "trace=4", [KNOB + "trace=4 has no effect under loss_mode=vanilla", "set it to 1"]),
        ("minpro", KNOB + "trace=2", [KNOB + "trace=2 has no effect under loss_mode=minpro"]),
        ("cppo", KNOB + "anchor=mu", [KNOB + "anchor='mu'", "rollout, proximal"]),
        ("cppo", KNOB + "budget_target=8", [KNOB + "budget_target=8", "(0, 1)"]),
        ("trm_avg", KNOB + "budget_target=0.08", ["budget_target=0.08", "loss_mode=trm_avg", "set it to null"]),
        ("grpo", KNOB + "budget_target=0.08", ["budget_target=0.08", "loss_mode=vanilla", "set it to null"]),
        ("cppo", MODE + "=async", [MODE + "='async'", "sync, colocate_async, separate_async"]),
    ],
)
def test_what_would_be_wrong_is_refused(preset, override, words):
    with pytest.raises(checks.RunConfigError) as refusal:
        checks.require(presets.compose(preset, [GROUP_OF_8, override]))
    for word in words:
        assert word in str(refusal.value)


SEPARATE = ["data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=16", MODE + "=separate_async"]
SEPARATE += ["actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1"]
SEPARATE += [
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
]


@pytest.mark.parametrize("preset", presets.names())
def test_every_preset_goes_over_every_trainer(preset):
    config = presets.compose(preset, [GROUP_OF_8, *SEPARATE])
    for mode in ("sync", "colocate_async", "separate_async"):
        for anchor in ("rollout", "proximal"):
            OmegaConf.update(config, MODE, mode)
            OmegaConf.update(config, KNOB + "anchor", anchor)
            checks.require(config)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train_batch_size=60", ["train_batch_size=60", "parameter_sync_step=4", "set it to 64"]),
        ("actor_rollout_ref.rollout.nnodes=0", ["rollout.nnodes=0", "separate_async"]),
        ("actor_rollout_ref.hybrid_engine=false", ["hybrid_engine=False", "set it to True"]),
        ("actor_rollout_ref.rollout.checkpoint_engine.backend=naive", ["backend=naive", "nccl"]),
        ("trainer.v1.trust_region.reproducible=true", ["reproducible=True", MODE + "=sync"]),
    ],
)
def test_what_a_separate_trainer_needs(override, words):
    with pytest.raises(checks.RunConfigError) as refusal:
        checks.require(presets.compose("cppo", [GROUP_OF_8, *SEPARATE, override]))
    for word in words:
        assert word in str(refusal.value)


def test_records_need_our_trainer():
    record = "trainer.v1.trust_region.record=8"
    checks.require(presets.compose("cppo", [GROUP_OF_8, record]))
    with pytest.raises(checks.RunConfigError, match="record has no effect with trainer.v1.trainer_mode=sync"):
        checks.require(presets.compose("cppo", [GROUP_OF_8, record, "trainer.v1.trainer_mode=sync"]))


def test_a_recomputed_anchor_must_be_asked_for_by_name():
    bypass = "algorithm.rollout_correction.bypass_mode=false"
    with pytest.raises(checks.RunConfigError, match="anchor=proximal"):
        checks.require(presets.compose("cppo", [GROUP_OF_8, bypass]))
    checks.require(presets.compose("cppo", [GROUP_OF_8, bypass, KNOB + "anchor=proximal"]))
    with pytest.raises(checks.RunConfigError, match="calculate_log_probs=False"):
        off = "actor_rollout_ref.rollout.calculate_log_probs=false"
        checks.require(presets.compose("cppo", [GROUP_OF_8, off, KNOB + "anchor=proximal"]))


def test_all_problems_are_listed_at_once():
    config = presets.compose("cppo", [KNOB + "w_min=0", KNOB + "delta=2", "trainer.use_v1=false"])
    with pytest.raises(checks.RunConfigError) as refusal:
        checks.require(config)
    assert str(refusal.value).count("\n  - ") == 4  # and rollout.n


@pytest.mark.parametrize("mode", ["vanilla", "cispo"])
def test_verls_own_losses_keep_their_clip_range(mode):
    preset = {"vanilla": "grpo", "cispo": "cispo"}[mode]
    actor = presets.compose(preset).actor_rollout_ref.actor
    assert (actor.policy_loss.loss_mode, actor.clip_ratio_low, actor.clip_ratio_high) == (mode, 0.2, 0.28)


@pytest.mark.stack
def test_the_stock_command_line_stops_before_ray(tmp_path):
    started = time.monotonic()
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+trust_region=cppo", KNOB + "w_min=0", GROUP_OF_8]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "w_min=0" in said and "(0, 1]" in said
    assert "Started a local Ray instance" not in said
    assert time.monotonic() - started < 60


def test_hydra_lists_the_presets_that_there_are():
    with pytest.raises(MissingConfigException, match="'trust_region/cpo'(.|\n)*cppo_soft"):
        presets.compose("cpo")


def test_typed_config_is_verls():
    from verl.utils.config import omega_conf_to_dataclass

    config = presets.compose("cppo", [GROUP_OF_8, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"])
    typed = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(typed.policy_loss, TrustRegionLossConfig)
    assert typed.policy_loss.delta_b == 0.02
