"""Scaled-down copies of the paper's scripts through the real stack on CPU: their flags, a tiny model, three steps.

What a script says of parallelism, offload, packing, checkpointing, numerics and attention stays as it says it; sizes
shrink, the token budget in proportion to the longest sequence. flash-attn is its stand-in (tests/stand_in).

One script runs by default, on one rank; CPPO_VERL_ALL_RECIPES=1 runs all four (a minute each, the 30B's on four ranks
with a split rollout three, and 10 GiB).
"""

import json
import math
import os
import subprocess

import pytest
from omegaconf import DictConfig, OmegaConf

from cppo_verl import paper
from recipe.settings import parse
from recipe.shapes import PAPER_NAMES
from tests import ROOT, stand_in

from .runs import P, Work, ended_well, records

METHODS = {
    "qwen3_8b_base": "trm_max_avg",
    "qwen3_30b_a3b_base": "cppo",
    "qwen3_1p7b": "cppo_kl",
    "qwen3_1p7b_base": "cispo",
}
ON_TOPK = ("cppo", "trm_max_avg", "cppo_kl")
PER_MINIBATCH = 2
PROMPT_TOKENS, RESPONSE_TOKENS = 48, 64
UNLESS_ALL = pytest.mark.skipif(not os.environ.get("CPPO_VERL_ALL_RECIPES"), reason="CPPO_VERL_ALL_RECIPES is not set")
# The platform's float32 taken back: verl's default, which the scripts run with.
BFLOAT16 = ("actor_rollout_ref.actor.fsdp_config.mixed_precision=null", "actor_rollout_ref.rollout.dtype=bfloat16")
SIZES = {
    "data.train_files",
    "data.val_files",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "reward.custom_reward_function.path",
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.gpu_memory_utilization",
    "actor_rollout_ref.rollout.max_model_len",
    "actor_rollout_ref.rollout.val_kwargs.n",
    "trainer.n_gpus_per_node",
    "trainer.total_training_steps",
    "trainer.test_freq",
    "trainer.save_freq",
}


def script(model: str, *arguments: str, **values: str) -> subprocess.CompletedProcess:
    environment = {**stand_in.environment(), **values}
    command = ["bash", str(ROOT / f"run_scripts/{model}.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)


def overrides(model: str, **values: str) -> dict[str, str]:
    done = script(model, "overrides", VERL_PLATFORM="", **values)  # as anywhere, not as here
    assert done.returncode == 0, done.stderr
    return parse(done.stdout.splitlines())


def smaller(work: Work, model: str) -> dict[str, str]:
    """The sizes of a run with as many updates a batch as in Table 3, on as many ranks as share a sequence."""
    own = overrides(model)
    sp = own["actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"]
    longest = int(own["data.max_prompt_length"]) + int(own["data.max_response_length"])
    tokens = int(own["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"])
    return {
        "METHOD": METHODS[model],
        "MODEL_PATH": str(work.model),  # dense for all: vLLM's CPU engine packs experts, which verl cannot refill
        "TRAIN_FILE": str(work.data / "train.parquet"),
        "VAL_FILES": str(work.data / "val.parquet"),
        "REWARD_FILE": str(ROOT / "data_prep/arithmetic_reward.py"),
        "RUN": str(work.folder / model),
        "STEPS": "3",
        "TEST_FREQ": "3",
        "SAVE_FREQ": "3",
        "VAL_N": "2",
        "PROMPTS": str(PER_MINIBATCH * paper.settings()[PAPER_NAMES[model]].updates),
        "MINIBATCH": str(PER_MINIBATCH),
        "N": "4",
        "PROMPT_TOKENS": str(PROMPT_TOKENS),
        "RESPONSE_TOKENS": str(RESPONSE_TOKENS),
        "TOKENS_PER_GPU": str(tokens * (PROMPT_TOKENS + RESPONSE_TOKENS) // longest),
        "NGPUS_PER_NODE": sp,
        "GPU_SHARE": "0.05",  # of the machine's memory there, which trainer and rollout share
    }


def train(work: Work, model: str) -> subprocess.CompletedProcess:
    values = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    small = ["+platform=cpu", *BFLOAT16, "data.val_max_samples=16", "trainer.val_before_train=false"]
    if model == "qwen3_30b_a3b_base":  # whose rollout is split
        small.append("actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend=mp")
    return script(model, *small, **smaller(work, model), **values)


@pytest.mark.parametrize("model", METHODS)
def test_a_smaller_run_changes_sizes_alone(tmp_path, model):
    own = overrides(model, METHOD=METHODS[model])
    small = overrides(model, **smaller(Work(tmp_path, tmp_path, tmp_path), model))
    assert {key for key in own.keys() | small.keys() if own.get(key) != small.get(key)} <= SIZES


@pytest.mark.parametrize(
    "model", [name if i == 0 else pytest.param(name, marks=UNLESS_ALL) for i, name in enumerate(METHODS)]
)
def test_a_scaled_down_script_trains(work: Work, model):
    done = train(work, model)
    ended_well(done)
    assert "memory of a GPU" in done.stdout
    assert "step 3/3" in done.stdout

    run = work.folder / model
    steps = {record["step"]: record["data"] for record in records(run)}
    assert sorted(steps) == [1, 2, 3]
    trained = [data for data in steps.values() if data["trust_region/zero_variance_share"] < 1]
    assert trained
    for data in trained:
        assert math.isfinite(data["actor/grad_norm"]) and data["actor/grad_norm"] > 0
        assert 0 <= data[P + "masked_share"] <= 1
        assert data[P + "first_update/divergence_mean"] < 1e-2  # bfloat16 in both engines
        assert data[P + "divergence_mean"] > 0
    assert any(key.endswith("/acc/mean@2") for key in steps[3])
    assert json.loads((run / "checkpoints/latest_checkpointed_iteration.txt").read_text()) == 3
    assert (run / "report/report.html").stat().st_size > 10_000
    the_run_is_the_scripts(OmegaConf.load(run / "config.yaml"), model)


def the_run_is_the_scripts(config: DictConfig, model: str) -> None:
    """Flags as the run had them, after platform and preset."""
    actor, rollout, of_model = (config.actor_rollout_ref[part] for part in ("actor", "rollout", "model"))
    assert config.data.train_batch_size // actor.ppo_mini_batch_size == paper.settings()[PAPER_NAMES[model]].updates
    assert actor.policy_loss.estimator == ("topk" if METHODS[model] in ON_TOPK else "binary")
    assert actor.strategy == "fsdp2"
    assert actor.use_dynamic_bsz and of_model.use_remove_padding and of_model.enable_gradient_checkpointing
    assert of_model.override_config.attn_implementation == "flash_attention_2"
    parallel = actor.fsdp_config.ulysses_sequence_parallel_size, rollout.tensor_model_parallel_size
    assert parallel == ((4, 4) if model == "qwen3_30b_a3b_base" else (1, 1))
    offload = {key: actor.fsdp_config[key] for key in ("param_offload", "optimizer_offload", "offload_policy")}
    states, everything = model == "qwen3_8b_base", model == "qwen3_30b_a3b_base"
    assert offload == {"param_offload": states, "optimizer_offload": states, "offload_policy": everything}
