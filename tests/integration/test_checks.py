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


def refused(preset: str, *overrides: str, here: bool = False) -> str:
    """What is said against a run of ``preset`` with ``overrides``, anywhere or here; empty where nothing is."""
    try:
        given = [f"+trust_region={preset}", *overrides]
        checks.require(presets.compose(preset, [GROUP_OF_8, *overrides]), here, given)
    except checks.RunConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("preset", ["cppo", "cppo_topk"])
def test_presets_go_over_every_trainer(preset):
    """Every preset composes and is accepted: test_start_table."""
    config = presets.compose(preset, [GROUP_OF_8])
    knobs = config.actor_rollout_ref.actor.policy_loss
    assert knobs._target_ == f"{TrustRegionLossConfig.__module__}.{TrustRegionLossConfig.__qualname__}"
    assert config.actor_rollout_ref.actor.loss_scale_factor == config.data.max_response_length
    for mode, anchor in itertools.product(checks.MODES, ("rollout", "proximal")):
        OmegaConf.update(config, OPTION + "mode", mode)
        OmegaConf.update(config, KNOB + "anchor", anchor)
        checks.require(config)


FUSED = "actor_rollout_ref.model.use_fused_kernels=true"
LIGER = FUSED + ",actor_rollout_ref.model.fused_kernel_options.impl_backend=liger"
REFUSALS = [
    ("cppo", KNOB + "w_min=0", [KNOB + "w_min=0", "(0, 1]"]),
    ("cppo", "+" + KNOB + "drft=2", [KNOB + "drft=2", "no knob", "delta"]),
    ("cppo", KNOB + "loss_mode=cpo", ["loss_mode='cpo'", "cppo"]),
    ("trm_avg", KNOB + "budget_target=0.08", ["budget_target=0.08", "loss_mode=trm_avg", "null"]),
    ("trm_max", KNOB + "divergence=tv", ["divergence=tv", "KL"]),
    ("trm_max", KNOB + "gate=restore", ["gate=restore", "no effect", "loss_mode=trm_max", "hard", "cppo and dppo"]),
    ("minpro", KNOB + "trace=2", [KNOB + "trace=2", "loss_mode=minpro", "to 1"]),
    ("cppo", "algorithm.rollout_correction.bypass_mode=false", ["bypass_mode=False", "anchor=proximal"]),
    ("cppo", ROLLOUT + "top_p=0.9", ["top_p=0.9", "set it to 1"]),
    ("cppo", ROLLOUT + "top_k=50", ["top_k=50", "set it to -1"]),
    ("cppo", ROLLOUT + "logprobs_mode=raw_logprobs", ["logprobs_mode=raw_logprobs", "processed_logprobs"]),
    ("cppo", ROLLOUT + "logprobs_mode=null", ["logprobs_mode=None", "processed_logprobs"]),  # vLLM's own are raw
    ("cppo", "+" + ROLLOUT + "engine_kwargs.vllm.logprobs_mode=raw_logprobs", ["vllm.logprobs_mode=raw", "null"]),
    ("cppo", ROLLOUT + "temperature=0", ["temperature=0"]),
    ("cppo", ROLLOUT + "gpu_memory_utilization=1.5", ["gpu_memory_utilization=1.5", "(0, 1]"]),
    ("cppo", ACTOR + "optim.lr=-1e-6", ["optim.lr=-1e-06", "0 or more"]),
    ("cppo", "trainer.resume_mode=Auto", ["resume_mode=Auto", "auto"]),
    ("cppo", "trainer.max_actor_ckpt_to_keep=1", ["max_actor_ckpt_to_keep=1", "to 2"]),
    ("cppo", OPTION + "mode=separate_async,actor_rollout_ref.hybrid_engine=false", ["hybrid_engine=False", "True"]),
    ("cppo", "+" + ROLLOUT + "engine_kwargs.vllm.distributed_executor_backend=uni", ["uni", "=2", "mp"]),
    ("cppo", ACTOR + "loss_scale_factor=null", ["loss_scale_factor", "data.max_response_length"]),
    ("cppo", ROLLOUT + "n=1", ["rollout.n=1", "2 or more"]),
    ("cppo", "trainer.use_v1=false", ["trainer.use_v1=False"]),
    ("cppo", OPTION + "mode=async", [OPTION + "mode='async'", "sync, colocate_async, separate_async"]),
    ("cppo", OPTION + "record=-1", [OPTION + "record=-1", "at least 0"]),
    ("cppo", OPTION + "skip_zero_variance=no", [OPTION + "skip_zero_variance='no'", "True or False"]),
    ("cppo", OPTION + "skip_zero_variance=0", [OPTION + "skip_zero_variance=0", "True or False"]),
    ("cppo", "+" + OPTION + "skip_zero_varience=false", ["skip_zero_varience=False", "no option"]),
    # of two that cannot both be meant, both are named
    ("cppo", KNOB + "loss_mode=gspo", ["loss_mode=gspo", "+trust_region=cppo", "leave one"]),
    ("cppo", "trainer.v1.trainer_mode=sync", ["trainer_mode=sync", "trust_region", OPTION + "mode"]),
    ("cppo", OPTION + "reproducible=yes", [OPTION + "reproducible='yes'", "True or False"]),
    ("cppo", OPTION + "reproducible=1", [OPTION + "reproducible=1", "True or False"]),
    ("cppo", OPTION + "reproducible=true," + OPTION + "mode=colocate_async", ["reproducible=True", "mode=sync"]),
    ("cppo", OPTION + "reproducible=true," + ROLLOUT + "name=sglang", ["reproducible=True", "rollout.name=sglang"]),
    ("cppo_topk", OPTION + "reproducible=true", ["estimator=topk", "reproducible=True", "agent loop"]),
    ("cppo", OPTION + "reproducible=true,++algorithm.filter_groups.enable=true", ["filter_groups.enable=True"]),
    ("cppo", KNOB + "on_nonfinite=skip," + ACTOR + "strategy=megatron", ["on_nonfinite=skip", "megatron", "raise"]),
    ("cppo", "distillation.enabled=1," + TASK_REWARDS + "=False", [TASK_REWARDS + "=False", "to True"]),
    ("cppo", ROLLOUT + "calculate_log_probs=false," + KNOB + "anchor=proximal", ["calculate_log_probs=False"]),
    # what the top-K log-probs need
    ("cppo_topk", "+" + ROLLOUT + "engine_kwargs.vllm.max_logprobs=5", ["max_logprobs=5", "policy_loss.topk=20"]),
    ("cppo_topk", ROLLOUT + "name=sglang", ["rollout.name=sglang", "set it to vllm"]),
    ("cppo_topk", ACTOR + "strategy=megatron", ["strategy=megatron", "set it to fsdp or fsdp2"]),
    ("cppo_topk", OPTION + "topk_cutoff=1.5", ["topk_cutoff=1.5", "[0, 1)"]),
    ("cppo_topk", "++" + ROLLOUT + "agent.agent_loop_manager_class=my.Loop", ["my.Loop", "agent_loop_manager_class"]),
    ("cppo_topk", ACTOR + "pad_to_length=true", ["fsdp_config.pad_to_length=True", "set it to False"]),
    ("cppo_topk", ROLLOUT + "disaggregation.enabled=true", ["disaggregation.enabled=True", "set it to False"]),
    ("cppo_topk", LIGER, ["fused_kernel_options.impl_backend=liger", "torch or triton"]),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "overrides", "words"), REFUSALS)
def test_what_would_be_wrong_is_refused(preset, overrides, words):
    said = refused(preset, *overrides.split(","))
    assert said
    for word in words:
        assert word in said


def test_what_is_meant_is_not_refused():
    assert not refused("trm_max", KNOB + "estimator=topk")
    assert not refused("trm_max", KNOB + "loss_mode=trm_max_avg")
    assert not refused("cppo", KNOB + "anchor=proximal", "algorithm.rollout_correction.bypass_mode=false")


def test_all_problems_are_listed_at_once():
    config = presets.compose("cppo", [KNOB + "w_min=0", KNOB + "delta=2", "trainer.use_v1=false"])
    with pytest.raises(checks.RunConfigError) as refusal:
        checks.require(config)
    assert str(refusal.value).count("\n  - ") == 4  # and rollout.n


def test_a_check_that_fails_itself_lets_no_run_through(monkeypatch):
    """Hydra only warns about what a callback raises, and starts the run."""

    def fail(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(checks, "require", fail)
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
