"""Scaled-down copies of the paper's scripts through the real stack on CPU: their flags, a tiny model, three steps.

One script runs by default, the one that offloads and takes the most updates a batch; CPPO_VERL_ALL_RECIPES=1 runs all
four (about a minute each).
"""

import json
import math
import os
import subprocess

import pytest
from omegaconf import OmegaConf

from cppo_verl import paper
from recipe.shapes import PAPER_NAMES
from tests import ROOT

from .conftest import Work
from .test_stack import P, records

METHODS = {
    "qwen3_30b_a3b_base": "cppo",
    "qwen3_8b_base": "trm_max_avg",
    "qwen3_1p7b": "cppo_kl",
    "qwen3_1p7b_base": "cispo",
}
ON_TOPK = ("cppo", "trm_max_avg", "cppo_kl")
PER_MINIBATCH = 2
UNLESS_ALL = pytest.mark.skipif(not os.environ.get("CPPO_VERL_ALL_RECIPES"), reason="CPPO_VERL_ALL_RECIPES is not set")


def scaled_down(work: Work, model: str, method: str) -> subprocess.CompletedProcess:
    """The script of ``model`` with as many updates a batch as in Table 3, on one CPU rank."""
    updates = paper.settings()[PAPER_NAMES[model]].updates
    values = {
        "METHOD": method,
        "MODEL_PATH": str(work.model),  # dense for all: vLLM's CPU engine packs experts, which verl cannot refill
        "TRAIN_FILE": str(work.data / "train.parquet"),
        "VAL_FILES": str(work.data / "val.parquet"),
        "REWARD_FILE": str(ROOT / "data_prep/arithmetic_reward.py"),
        "RUN": str(work.folder / model),
        "STEPS": "3",
        "TEST_FREQ": "3",
        "SAVE_FREQ": "3",
        "VAL_N": "2",
        "PROMPTS": str(PER_MINIBATCH * updates),
        "MINIBATCH": str(PER_MINIBATCH),
        "N": "4",
        "PROMPT_TOKENS": "48",
        "RESPONSE_TOKENS": "64",
        "NGPUS_PER_NODE": "1",
        "SP": "1",
        "TP": "1",
        "TOKENS_PER_GPU": "2048",
        "GPU_SHARE": "0.05",
        # the setting of two nodes; FSDP2's CPUOffloadPolicy pins memory, which takes a GPU
        **({"OFFLOAD": "states"} if model == "qwen3_30b_a3b_base" else {}),
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = ["bash", str(ROOT / f"run_scripts/{model}.sh"), "+platform=cpu"]
    command += ["data.val_max_samples=16", "trainer.val_before_train=false"]
    return subprocess.run(command, env={**os.environ, **values}, capture_output=True, text=True, timeout=1500)


@pytest.mark.parametrize(
    "model", [name if i == 0 else pytest.param(name, marks=UNLESS_ALL) for i, name in enumerate(METHODS)]
)
def test_a_scaled_down_script_trains(work: Work, model):
    method = METHODS[model]
    done = scaled_down(work, model, method)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
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
        assert data[P + "first_update/divergence_mean"] < 1e-3
    assert any(key.endswith("/acc/mean@2") for key in steps[3])

    config = OmegaConf.load(run / "config.yaml")
    actor = config.actor_rollout_ref.actor
    assert config.data.train_batch_size // actor.ppo_mini_batch_size == paper.settings()[PAPER_NAMES[model]].updates
    assert actor.policy_loss.estimator == ("topk" if method in ON_TOPK else "binary")
    assert actor.strategy == "fsdp2"
    assert actor.fsdp_config.optimizer_offload == (model in ("qwen3_30b_a3b_base", "qwen3_8b_base"))
    assert json.loads((run / "checkpoints/latest_checkpointed_iteration.txt").read_text()) == 3
    assert (run / "report/report.html").stat().st_size > 10_000
