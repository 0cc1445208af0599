"""A scaled-down copy of one of the paper's scripts through the real stack on CPU: its flags, a tiny model, three steps.

What a script says of parallelism, offload, packing, checkpointing, numerics and attention stays as it says it; sizes
shrink, the token budget in proportion to the longest sequence. flash-attn is its stand-in (tests/stand_in).

CPPO_VERL_ALL_RECIPES=1 runs all four (a minute each, the 30B's on four ranks with a split rollout three, and 10 GiB).
"""

import os
import subprocess

import pytest
from omegaconf import OmegaConf

from cppo_verl import paper
from cppo_verl.launch import checkpoints
from recipe.settings import parse
from recipe.shapes import PAPER_NAMES
from tests import ROOT, stand_in

from .runs import P, Work, ended_well, logged

METHODS = {
    "qwen3_8b_base": "trm_max_avg",
    "qwen3_30b_a3b_base": "cppo",
    "qwen3_1p7b": "cppo_kl",
    "qwen3_1p7b_base": "cispo",
}
RUN = METHODS if os.environ.get("CPPO_VERL_ALL_RECIPES") else list(METHODS)[:1]
# The platform's float32 taken back: verl's default, which the scripts run with.
BFLOAT16 = ("actor_rollout_ref.actor.fsdp_config.mixed_precision=null", "actor_rollout_ref.rollout.dtype=bfloat16")
FEW = {"STEPS": 3, "TEST_FREQ": 3, "SAVE_FREQ": 3, "VAL_N": 2, "PROMPT_TOKENS": 48, "RESPONSE_TOKENS": 64, "N": 4}
FEW |= {"MINIBATCH": 2}
FSDP = "actor_rollout_ref.actor.fsdp_config."
FLAGS = ("strategy", "attn_implementation", "enable_gradient_checkpointing", "use_dynamic_bsz", "use_remove_padding")
FLAGS += ("tensor_model_parallel_size", "policy_loss.estimator")


def script(model: str, *arguments: str, **values: object) -> subprocess.CompletedProcess:
    environment = {**stand_in.environment(), **{name: str(value) for name, value in values.items()}}
    command = ["bash", str(ROOT / f"run_scripts/{model}.sh"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    ended_well(done)
    return done


def smaller(work: Work, model: str, own: dict) -> dict[str, object]:
    """The sizes of a run with as many updates a batch as in Table 3, on as many ranks as share a sequence."""
    longest = own["data.max_prompt_length"] + own["data.max_response_length"]
    return FEW | {
        "METHOD": METHODS[model],
        "MODEL_PATH": work.model,  # dense for all: vLLM's CPU engine packs experts, which verl cannot refill
        "TRAIN_FILE": work.data / "train.parquet",
        "VAL_FILES": work.data / "val.parquet",
        "REWARD_FILE": ROOT / "data_prep/arithmetic_reward.py",
        "RUN": work.folder / model,
        "PROMPTS": 2 * paper.settings()[PAPER_NAMES[model]].updates,
        "TOKENS_PER_GPU": own["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] * (48 + 64) // longest,
        "NGPUS_PER_NODE": own[FSDP + "ulysses_sequence_parallel_size"],
        "GPU_SHARE": 0.05,  # of the machine's memory there, which trainer and rollout share
    }


@pytest.mark.parametrize("model", RUN)
def test_a_scaled_down_script_trains(work: Work, model):
    own = parse(script(model, "overrides", VERL_PLATFORM="", METHOD=METHODS[model]).stdout.splitlines())  # as anywhere
    on_cpu = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    more = ["+platform=cpu", *BFLOAT16, "data.val_max_samples=16", "trainer.val_before_train=false"]
    if model == "qwen3_30b_a3b_base":  # whose rollout is split
        more.append("actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend=mp")
    done = script(model, *more, **smaller(work, model, own), **on_cpu)
    assert "memory of a GPU" in done.stdout and "step 3/3" in done.stdout

    run = work.folder / model
    steps = logged(run)
    assert sorted(steps) == [1, 2, 3]
    trained = [data for data in steps.values() if data["trust_region/zero_variance_share"] < 1]
    assert trained
    for data in trained:
        assert 0 < data["actor/grad_norm"] < float("inf") and 0 <= data[P + "masked_share"] <= 1
        assert data[P + "first_update/divergence_mean"] < 1e-2  # bfloat16 in both engines
        assert data[P + "divergence_mean"] > 0
    assert any(key.endswith("/acc/mean@2") for key in steps[3])
    assert checkpoints.pointed_at(run / "checkpoints") == 3
    assert (run / "report/report.html").stat().st_size > 10_000

    config = OmegaConf.load(run / "config.yaml")  # flags as the run had them, after platform and preset
    flags = [key for key in own if key.startswith(FSDP) or key.endswith(FLAGS)]
    assert len(flags) >= 10
    assert {key: OmegaConf.select(config, key) for key in flags} == {key: own[key] for key in flags}
