"""Composed configs: every preset is accepted, and each thing that would make a run wrong is named before it starts."""

import itertools
import os
import subprocess
import sys

import pytest
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.integration import checks, hydra_check
from cppo_verl.integration.config import TrustRegionLossConfig

KNOB = "actor_rollout_ref.actor.policy_loss."
OPTION = "trainer.v1.trust_region."
ROLLOUT, ACTOR = "actor_rollout_ref.rollout.", "actor_rollout_ref.actor."
TASK_REWARDS = "distillation.distillation_loss.use_task_rewards"
GROUP_OF_8 = ROLLOUT + "n=8"
SEPARATE = ["data.train_batch_size=64", ACTOR + "ppo_mini_batch_size=16", OPTION + "mode=separate_async"]
SEPARATE += [ROLLOUT + each for each in ("nnodes=1", "n_gpus_per_node=1", "checkpoint_engine.backend=nccl")]
SEPARATE += [ROLLOUT + "tensor_model_parallel_size=1"]


def refused(preset: str, *overrides: str) -> str:
    """What is said against a run of ``preset`` with ``overrides``; empty where nothing is."""
    try:
        given = [f"+trust_region={preset}", *overrides]
        checks.require(presets.compose(preset, [GROUP_OF_8, *overrides]), overrides=given)
    except checks.RunConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", presets.names())
def test_presets_compose_and_go_over_every_trainer(name):
    config = presets.compose(name, [GROUP_OF_8])
    checks.require(config)
    knobs = config.actor_rollout_ref.actor.policy_loss
    assert knobs._target_ == f"{TrustRegionLossConfig.__module__}.{TrustRegionLossConfig.__qualname__}"
    assert config.actor_rollout_ref.actor.loss_scale_factor == config.data.max_response_length
    config = presets.compose(name, [GROUP_OF_8, *SEPARATE])
    for mode, anchor in itertools.product(checks.MODES, ("rollout", "proximal")):
        OmegaConf.update(config, OPTION + "mode", mode)
        OmegaConf.update(config, KNOB + "anchor", anchor)
        checks.require(config)


REFUSALS = [
    ("cppo", KNOB + "w_min=0", [KNOB + "w_min=0", "(0, 1]"]),
    ("cppo", KNOB + "delta=-0.1", [KNOB + "delta=-0.1"]),
    ("cppo", KNOB + "horizon=longest", [KNOB + "horizon='longest'", "response, max"]),
    ("cppo", "+" + KNOB + "drft=2", [KNOB + "drft=2", "no knob", "delta"]),
    ("cppo", KNOB + "loss_mode=cpo", ["loss_mode='cpo'", "cppo"]),
    ("cppo", KNOB + "restore_strength=0", [KNOB + "restore_strength=0"]),
    ("cppo", KNOB + "anchor=mu", [KNOB + "anchor='mu'", "rollout, proximal"]),
    ("cppo", KNOB + "budget_target=8", [KNOB + "budget_target=8", "(0, 1)"]),
    ("trm_avg", KNOB + "budget_target=0.08", ["budget_target=0.08", "loss_mode=trm_avg", "null"]),
    ("grpo", KNOB + "budget_target=0.08", ["budget_target=0.08", "loss_mode=vanilla", "null"]),
    ("trm_max", KNOB + "divergence=tv", ["divergence=tv", "KL"]),
    ("trm_max", KNOB + "gate=restore", ["gate=restore", "no effect", "loss_mode=trm_max", "hard", "cppo and dppo"]),
    ("minpro", KNOB + "gate=soft", [KNOB + "gate=soft", "no effect", "loss_mode=minpro"]),
    ("grpo", KNOB + "trace=4", [KNOB + "trace=4", "loss_mode=vanilla", "to 1"]),
    ("minpro", KNOB + "trace=2", [KNOB + "trace=2", "loss_mode=minpro", "to 1"]),
    ("cppo", "algorithm.rollout_correction.bypass_mode=false", ["bypass_mode=False", "anchor=proximal"]),
    ("dppo_tv", ROLLOUT + "calculate_log_probs=false", ["calculate_log_probs=False"]),
    ("cppo", ROLLOUT + "top_p=0.9", ["top_p=0.9", "set it to 1"]),
    ("cppo", ROLLOUT + "top_k=50", ["top_k=50", "set it to -1"]),
    ("cppo", ROLLOUT + "logprobs_mode=raw_logprobs", ["logprobs_mode=raw_logprobs", "processed_logprobs"]),
    ("cppo", ROLLOUT + "temperature=0", ["temperature=0"]),
    ("cppo", "+" + ROLLOUT + "engine_kwargs.vllm.distributed_executor_backend=uni", ["uni", "=2", "mp"]),
    ("cppo", ACTOR + "loss_scale_factor=null", ["loss_scale_factor", "data.max_response_length"]),
    ("cppo", ROLLOUT + "n=1", ["rollout.n=1", "2 or more"]),
    ("cppo", "trainer.use_v1=false", ["trainer.use_v1=False"]),
    ("cppo", "trainer.max_actor_ckpt_to_keep=1", ["max_actor_ckpt_to_keep=1", "to 2"]),
    ("cppo", OPTION + "mode=async", [OPTION + "mode=async", "sync, colocate_async, separate_async"]),
    ("cppo", OPTION + "record=-1", [OPTION + "record=-1", "at least 0"]),
    ("cppo", OPTION + "record_limit_mb=0", ["record_limit_mb=0", "at least 1"]),
    ("cppo", "+" + OPTION + "skip_zero_varience=false", ["skip_zero_varience=False", "no option"]),
    # of two that cannot both be meant, both are named
    ("cppo", KNOB + "loss_mode=gspo", ["loss_mode=gspo", "+trust_region=cppo", "leave one"]),
    ("dppo_tv", KNOB + "loss_mode=vanilla", ["loss_mode=vanilla", "+trust_region=dppo_tv", "presets with", "grpo"]),
    ("cppo", "trainer.v1.trainer_mode=sync", ["trainer_mode=sync", "trust_region", OPTION + "mode"]),
    ("cppo", "trainer.v1.trainer_mode=colocate_async", ["trainer_mode=colocate_async", OPTION + "mode"]),
    ("cppo", OPTION + "reproducible=yes", [OPTION + "reproducible=yes", "True or False"]),
    ("cppo", OPTION + "reproducible=true," + OPTION + "mode=colocate_async", ["reproducible=True", "mode=sync"]),
    ("cppo", OPTION + "reproducible=true," + ROLLOUT + "name=sglang", ["reproducible=True", "rollout.name=sglang"]),
    ("cppo_topk", OPTION + "reproducible=true", ["estimator=topk", "reproducible=True", "agent loop"]),
    ("cppo", OPTION + "reproducible=true,++algorithm.filter_groups.enable=true", ["filter_groups.enable=True"]),
    ("cppo", KNOB + "on_nonfinite=skip," + ACTOR + "strategy=megatron", ["on_nonfinite=skip", "megatron", "raise"]),
    ("cppo", "distillation.enabled=True," + TASK_REWARDS + "=False", [TASK_REWARDS + "=False", "to True"]),
    ("cppo", ",".join([*SEPARATE, "data.train_batch_size=60"]), ["train_batch_size=60", "parameter_sync_step=4", "64"]),
    ("cppo", ",".join([*SEPARATE, ROLLOUT + "nnodes=0"]), ["rollout.nnodes=0", "separate_async"]),
    ("cppo", ",".join([*SEPARATE, "actor_rollout_ref.hybrid_engine=false"]), ["hybrid_engine=False", "True"]),
    ("cppo", ",".join([*SEPARATE, ROLLOUT + "checkpoint_engine.backend=naive"]), ["backend=naive", "nccl"]),
    ("cppo", ROLLOUT + "calculate_log_probs=false," + KNOB + "anchor=proximal", ["calculate_log_probs=False"]),
    ("cppo", "+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY=x", ["WANDB_API_KEY", "logs"]),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "overrides", "words"), REFUSALS)
def test_what_would_be_wrong_is_refused(preset, overrides, words):
    said = refused(preset, *overrides.split(","))
    assert said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("cppo", ["algorithm.rollout_correction.bypass_mode=false", KNOB + "anchor=proximal"]),
        ("trm_max", [KNOB + "loss_mode=trm_max_avg"]),  # a rule without a preset goes over another's
        ("cppo_kl", [KNOB + "loss_mode=cppo"]),
    ],
)
def test_what_is_meant_is_not_refused(preset, overrides):
    assert not refused(preset, *overrides)


def test_all_problems_are_listed_at_once():
    config = presets.compose("cppo", [KNOB + "w_min=0", KNOB + "delta=2", "trainer.use_v1=false"])
    with pytest.raises(checks.RunConfigError) as refusal:
        checks.require(config)
    assert str(refusal.value).count("\n  - ") == 4  # and rollout.n


@pytest.mark.parametrize("broken", ["require", "mode_of"])
def test_a_check_that_fails_itself_lets_no_run_through(broken, monkeypatch):
    """Hydra only warns about what a callback raises, and starts the run."""

    def fail(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(checks, broken, fail)
    with pytest.raises(SystemExit, match=r"failed \(RuntimeError: Could not determine home directory"):
        hydra_check.StartCheck().on_run_start(presets.compose("cppo", [GROUP_OF_8]))


def test_each_run_of_a_sweep_is_checked():
    config = presets.compose("cppo", [GROUP_OF_8, ROLLOUT + "top_p=0.9"])
    OmegaConf.set_struct(config, False)
    config.hydra = {"mode": RunMode.RUN}
    hydra_check.StartCheck().on_job_start(config)  # which was checked before
    config.hydra.mode = RunMode.MULTIRUN
    with pytest.raises(SystemExit, match="top_p=0.9"):
        hydra_check.StartCheck().on_job_start(config)


@pytest.mark.stack
def test_the_stock_command_line_stops_before_ray(tmp_path):
    """For a user without a home too, to whom ``~`` says nothing."""
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+trust_region=cppo", GROUP_OF_8]
    command.append(ROLLOUT + "top_p=0.9")  # and verl's own model path, which begins with ~
    values = {**os.environ, "HOME": "~"}  # what expanding it comes to for a user id that the system does not know
    done = subprocess.run(command, cwd=tmp_path, env=values, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "cppo_verl: " in said and "home" in said
    assert "ray init kwargs" not in said


def test_hydra_lists_the_presets_that_there_are():
    with pytest.raises(MissingConfigException, match="'trust_region/cpo'(.|\n)*cppo_soft"):
        presets.compose("cpo")
