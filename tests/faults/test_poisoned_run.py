"""A real run of two ranks that is handed wrong numbers: what is said, what is skipped, what reaches the weights.

Two starts of the stack, which both end by an error; CPPO_VERL_FAULTS=1 runs them.
"""

import math
import os
import re
from pathlib import Path

import pytest
import torch

from cppo_verl.integration.alarms import GAP
from cppo_verl.launch.progress import ALARM
from tests import ROOT
from tests.e2e.runs import SMALL, Work, logged, quickstart

pytestmark = pytest.mark.skipif(not os.environ.get("CPPO_VERL_FAULTS"), reason="CPPO_VERL_FAULTS is not set")


def poisoned(work: Work, run: Path, *plan: str) -> str:
    """What a run said that did not end well."""
    done = quickstart(
        work,
        *SMALL,
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",  # one update a step
        "actor_rollout_ref.actor.optim.lr=2e-3",  # far enough from one step to the next
        "trainer.save_freq=1",
        "trainer.max_actor_ckpt_to_keep=10",
        "trainer.v1.trainer_mode=poisoned",
        f"+trainer.v1.poisoned.plan=[{','.join(plan)}]",
        f"data.val_files={work.data / 'train.parquet'}",
        RUN=str(run),
        STEPS="6",
        RANKS="2",
        VERL_USE_EXTERNAL_MODULES="tests.faults.poisoned",
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def spoiled(work: Work, tmp_path_factory) -> tuple[Path, str]:
    """Run directory and output of a run with three poisoned steps, the last of them fatal."""
    run = tmp_path_factory.mktemp("runs") / "poisoned"
    return run, poisoned(work, run, "stale", "clean", "nan-skip", "clean", "nan-raise")


def shards(run: Path, step: int, kind: str) -> list[dict]:
    """What both ranks saved at a step."""
    files = sorted((run / f"checkpoints/global_step_{step}/actor").glob(f"{kind}_world_size_2_rank_*.pt"))
    assert len(files) == 2
    return [torch.load(file, weights_only=False) for file in files]


def tensors(value) -> list[torch.Tensor]:
    """All tensors in a nest of dicts and lists; this rank's part of distributed ones."""
    if isinstance(value, torch.Tensor):
        return [value.to_local() if hasattr(value, "to_local") else value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for each in inner for tensor in tensors(each)]


def test_responses_of_older_weights_raise_one_alarm(spoiled):
    run, output = spoiled
    assert sum(ALARM in line and GAP in line for line in output.splitlines()) == 1
    steps = logged(run)
    assert steps[1][GAP] < 1e-6 < 0.02 < steps[2][GAP]
    assert steps[4][GAP] < 1e-6  # the engine has the weights again


def test_training_on_validation_prompts_raises_an_alarm(spoiled):
    assert re.search(rf"{ALARM}: (\d+) of \1 validation prompts are in data.train_files too", spoiled[1])


def test_a_nan_on_one_rank_skips_the_update_on_both_and_reaches_no_state(spoiled):
    run, _ = spoiled
    steps = logged(run)
    assert steps[3]["actor/trust_region/nonfinite_tokens_max"] >= 1
    for kind in ("model", "optim"):
        before, after = (tensors(shards(run, step, kind)) for step in (2, 3))
        assert len(before) > 10
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    skipped, following = (tensors(shards(run, step, "model")) for step in (3, 4))
    assert all(bool(tensor.isfinite().all()) for tensor in following)
    assert any(not torch.equal(a, b) for a, b in zip(skipped, following, strict=True))
    assert math.isfinite(steps[4]["actor/pg_loss"]) and steps[4]["actor/grad_norm"] > 0


def test_by_default_a_nan_ends_the_run_and_is_named(spoiled):
    run, output = spoiled
    assert re.search(r"FloatingPointError: .*old_log_prob", output)
    assert max(logged(run)) == 4
    assert (run / "checkpoints/latest_checkpointed_iteration.txt").read_text() == "4"


def test_workers_without_the_plug_in_are_named_before_any_step(work: Work, tmp_path):
    said = poisoned(work, tmp_path / "run", "forgotten")
    assert "policy_loss.loss_mode=cppo: on " in said
    assert "not registered, so the plug-in cppo_verl was not loaded" in said
    assert not logged(tmp_path / "run")
