"""An asynchronous run of the real stack, killed in mid-stream and resumed: what it trains on, and in which order.

Three starts of the stack; CPPO_VERL_FAULTS=1 runs them.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from cppo_verl.launch import checkpoints
from cppo_verl.reporting import metrics as names
from tests.e2e.runs import QUICKSTART, SMALL, Work, ended_well, environment, kill_driver, logged, logs, start_until
from tests.recording.exact import replays_exactly

pytestmark = pytest.mark.skipif(not os.environ.get("CPPO_VERL_FAULTS"), reason="CPPO_VERL_FAULTS is not set")

STEPS, PROMPTS, RESPONSES, AHEAD = 10, 8, 4, 2  # as SMALL has them


@pytest.fixture(scope="module")
def run(work: Work, tmp_path_factory) -> tuple[Path, int]:
    """A run killed after its checkpoint of step 4 and resumed to its end; the step it went on from."""
    run = tmp_path_factory.mktemp("runs") / "async"
    command = [
        QUICKSTART,
        *SMALL,
        f"trainer.v1.colocate_async.num_warmup_batches={AHEAD}",
        f"trainer.rollout_data_dir={run}/rollouts",
        f"trainer.v1.trust_region.record={PROMPTS * RESPONSES}",
        "trainer.save_freq=2",
        "trainer.max_actor_ckpt_to_keep=10",
    ]
    values = environment(work, RUN=str(run), METHOD="cppo_async", MODE="colocate_async", STEPS=str(STEPS))
    kill_driver(run, start_until(4, run, command, values))
    checkpoint = checkpoints.pointed_at(run / "checkpoints")
    (run / "rollouts").rename(run / "rollouts-of-the-first")
    ended_well(subprocess.run(command, env=values, capture_output=True, text=True, timeout=900))
    return run, checkpoint


def trained(folder: Path, steps: range) -> list[tuple[str, str]]:
    """(prompt, response) of everything these steps trained on."""
    rows = [json.loads(line) for step in steps for line in (folder / f"{step}.jsonl").read_text().splitlines()]
    return [(row["input"], row["output"]) for row in rows]


def test_every_step_is_there_once_and_old_responses_are_told(run):
    folder, checkpoint = run
    assert 4 <= checkpoint < STEPS
    resumed = [json.loads(line)["step"] for line in logs(folder)[-1].read_text().splitlines()]
    assert [step for step in resumed if step > checkpoint] == list(range(checkpoint + 1, STEPS + 1))
    steps = logged(folder)
    assert set(steps) >= set(range(1, STEPS + 1))
    assert max(steps[step][names.BEHIND_MAX] for step in range(AHEAD + 1, STEPS + 1)) >= AHEAD
    assert steps[checkpoint + 1][names.BEHIND_MAX] >= 1  # what waited in the queue was kept


def test_nothing_is_trained_twice_and_nothing_is_lost(run):
    """Prompts come once an epoch: those before the checkpoint and those after it are different ones, and all full."""
    folder, checkpoint = run
    before = trained(folder / "rollouts-of-the-first", range(1, checkpoint + 1))
    after = trained(folder / "rollouts", range(checkpoint + 1, STEPS + 1))
    assert len(before) == checkpoint * PROMPTS * RESPONSES
    assert len(after) == (STEPS - checkpoint) * PROMPTS * RESPONSES
    prompts = [{prompt for prompt, _ in part} for part in (before, after)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == STEPS * PROMPTS


def test_the_scale_goes_on_and_the_checkpoint_has_the_queue(run):
    folder, checkpoint = run
    kept = folder / f"checkpoints/global_step_{checkpoint}"
    assert (kept / checkpoints.QUEUE).is_dir()
    state = json.loads((kept / checkpoints.STATE).read_text())
    assert logged(folder)[checkpoint + 1][names.SCALE] == state["threshold_scale"] != 1


def test_records_replay_and_the_report_has_the_ages(run):
    folder, checkpoint = run
    recorded = replays_exactly(folder)
    assert set(recorded) == set(range(1, STEPS + 1))
    assert "Age of the responses" in (folder / "report/report.html").read_text(encoding="utf-8")


def test_rollout_engines_of_their_own_train_and_are_told_apart_by_age(work: Work, tmp_path):
    """``separate_async``: weights cross over gloo to a rollout engine that goes on sampling meanwhile."""
    run, alone = tmp_path / "separate", "actor_rollout_ref.rollout."
    command = [QUICKSTART, *SMALL, f"{alone}nnodes=1", f"{alone}n_gpus_per_node=1"]
    command += [f"{alone}checkpoint_engine.backend=gloo", f"{alone}n=8"]
    command += ["trainer.v1.separate_async.parameter_sync_step=2", "trainer.save_freq=4"]
    values = environment(work, RUN=str(run), METHOD="cppo_async", MODE="separate_async", STEPS="4")
    ended_well(subprocess.run(command, env=values, capture_output=True, text=True, timeout=900))
    steps = logged(run)
    assert set(steps) >= {1, 2, 3, 4}
    assert steps[1][names.FIRST_UPDATE] < 1e-5  # the engine began with the trainer's weights
    assert max(steps[step][names.BEHIND_MAX] for step in (2, 3, 4)) >= 1
    assert all(steps[step][names.GRAD_NORM] > 0 for step in (1, 2, 3, 4))
    assert (run / "checkpoints/global_step_4" / checkpoints.QUEUE).is_dir()
    assert set(replays_exactly(run)) == {1, 2, 3, 4}
