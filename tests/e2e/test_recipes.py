"""Scaled-down copies of the paper's scripts through the real stack on CPU: their flags, a tiny model, a few steps.

That of Qwen3-8B-Base is the run of ``resumed``, in float32. CPPO_VERL_ALL_RECIPES=1 runs the others (a minute each, the
30B's on four ranks with a split rollout three, and 10 GiB).
"""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cppo_verl.launch import checkpoints

from . import recipes
from .conftest import Resumed
from .runs import P, Work, ended_well, logged

FLAGS = ("strategy", "attn_implementation", "enable_gradient_checkpointing", "use_dynamic_bsz", "use_remove_padding")
FLAGS += ("tensor_model_parallel_size", "policy_loss.estimator")
# The platform's float32 taken back: verl's default, which the scripts run with.
BFLOAT16 = ("actor_rollout_ref.actor.fsdp_config.mixed_precision=null", "actor_rollout_ref.rollout.dtype=bfloat16")


def check(run: Path, own: dict, gap: float) -> None:
    """It trained, and its flags are those of the script, after platform and preset."""
    steps = logged(run)
    trained = [data for step, data in steps.items() if step and data["trust_region/zero_variance_share"] < 1]
    assert trained
    for data in trained:
        assert 0 < data["actor/grad_norm"] < float("inf") and 0 <= data[P + "masked_share"] <= 1
        assert data[P + "first_update/divergence_mean"] < gap and data[P + "divergence_mean"] > 0
    assert checkpoints.pointed_at(run / "checkpoints") == max(steps)
    assert (run / "report/report.html").stat().st_size > 10_000
    config = OmegaConf.load(run / "config.yaml")
    flags = [key for key in own if key.startswith(recipes.FSDP) or key.endswith(FLAGS)]
    assert len(flags) >= 10
    assert {key: OmegaConf.select(config, key) for key in flags} == {key: own[key] for key in flags}


def test_the_script_that_was_killed_and_resumed_trains_with_its_flags(resumed: Resumed):
    assert "memory of a GPU" in resumed.output
    check(resumed.run, recipes.overrides("qwen3_8b_base", "dppo", SP="2"), 1e-5)


@pytest.mark.skipif(not os.environ.get("CPPO_VERL_ALL_RECIPES"), reason="CPPO_VERL_ALL_RECIPES is not set")
@pytest.mark.parametrize(
    ("model", "method"), [("qwen3_30b_a3b_base", "cppo"), ("qwen3_1p7b", "cppo_kl"), ("qwen3_1p7b_base", "trm_max_avg")]
)
def test_a_scaled_down_script_trains(work: Work, model: str, method: str):
    own, run = recipes.overrides(model, method), work.folder / model
    more = ["+platform=cpu", *BFLOAT16, "data.val_max_samples=16", "trainer.val_before_train=false"]
    if model == "qwen3_30b_a3b_base":  # whose rollout is split
        more.append("actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend=mp")
    values = recipes.smaller(work, model, own) | {"METHOD": method, "RUN": run, "STEPS": 3, "TEST_FREQ": 3}
    done = recipes.script(model, *more, **values | {"SAVE_FREQ": 3, "VAL_N": 2})
    ended_well(done)
    assert "memory of a GPU" in done.stdout and "step 3/3" in done.stdout
    check(run, own, 1e-2)
    steps = logged(run)
    assert sorted(steps) == [1, 2, 3] and any(key.endswith("/acc/mean@2") for key in steps[3])
