"""The real stack on CPU: Ray, TransferQueue, FSDP2 over gloo and vLLM's CPU engine. Minutes, not seconds.

CPPO_VERL_STEPS_EACH=N trains every preset for N steps instead of five.
"""

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cppo_verl import presets
from cppo_verl.launch import supervise
from tests import ROOT, stand_in
from tests.recording.exact import replays_exactly

from .conftest import Work

P = "actor/trust_region/"
STEPS_EACH = int(os.environ.get("CPPO_VERL_STEPS_EACH", "5"))
PRESETS = presets.names()
QUICKSTART = str(ROOT / "run_scripts/quickstart.sh")
SHARED_SEQUENCES = (  # two ranks, each with a half of every packed micro-batch
    "++actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2",
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
    "actor_rollout_ref.model.enable_gradient_checkpointing=true",
)
STATES_ON_THE_HOST = (
    "actor_rollout_ref.actor.fsdp_config.param_offload=true",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true",
)


def records(run: Path) -> list[dict]:
    """Every logged line of a run, in the order of its starts."""
    lines = [line for file in sorted((run / "logs").glob("metrics-*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def environment(work: Work, **values: str) -> dict[str, str]:
    return {**os.environ, "WORK": str(work.folder), **values}


def quickstart(work: Work, *overrides: str, **values: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [QUICKSTART, *overrides], env=environment(work, **values), capture_output=True, text=True, timeout=1500
    )


@pytest.fixture(scope="module")
def every_preset(work: Work) -> dict[str, list[dict]]:
    """``STEPS_EACH`` logged steps of each preset, from one run that changes its rule after as many."""
    run = work.folder / "rotating"
    done = quickstart(
        work,
        "trainer.v1.trainer_mode=rotating",
        f"+trainer.v1.rotating.steps_each={STEPS_EACH}",
        f"+trainer.v1.rotating.presets=[{','.join(PRESETS)}]",
        "data.train_batch_size=8",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.model.use_fused_kernels=true",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        METHOD="cppo_topk",
        RUN=str(run),
        STEPS=str(STEPS_EACH * len(PRESETS)),
        VERL_USE_EXTERNAL_MODULES="tests.e2e.rotating",
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    steps = [record["data"] for record in records(run) if record["step"] > 0]
    assert len(steps) == STEPS_EACH * len(PRESETS)
    return {name: steps[i * STEPS_EACH : (i + 1) * STEPS_EACH] for i, name in enumerate(PRESETS)}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_through_the_real_stack(every_preset, preset):
    steps = every_preset[preset]
    trained = [step for step in steps if step["trust_region/zero_variance_share"] < 1]
    assert len(trained) >= STEPS_EACH // 2
    for step in trained:
        assert all(math.isfinite(v) for v in step.values() if isinstance(v, int | float))
        assert step["actor/grad_norm"] > 0
        # float32 in both engines: at equal weights they agree (but for the coding of top-K log-probs in transport)
        topk = preset.endswith("_topk")
        assert step[P + "first_update/divergence_mean"] < (1e-3 if topk else 1e-6)
        assert (P + "topk_mass" in step) == topk
        assert step[P + "divergence_mean"] >= step[P + "first_update/divergence_mean"]
        parts = step[P + "masked_share_token_threshold"] + step[P + "masked_share_prefix_budget"]
        assert step[P + "masked_share"] == pytest.approx(parts, abs=1e-6)
        cppo = preset.startswith("cppo")
        assert (P + "effective_delta_b" in step) == cppo
        if not cppo:
            assert step[P + "masked_share_prefix_budget"] == 0
        if preset in ("minpro", "cispo"):
            assert step[P + "masked_share"] == 0
    # updates after a step's first one have moved away from the rollout
    assert any(step[P + "divergence_mean"] > 2 * step[P + "first_update/divergence_mean"] for step in trained)
    if preset == "cispo":  # the first turn, while probabilities still move much
        assert any(step[P + "ratio_capped_share"] > 0 for step in trained)


def test_a_killed_two_rank_run_resumes_and_reports(work: Work):
    """SIGKILL of the driver after a checkpoint; the same command goes on there and ends with a report.

    The ranks share each sequence, on the Top-K estimator, with checkpointing and states offloaded.
    """
    run = work.folder / "resumed"
    command = [QUICKSTART, "trainer.save_freq=2", "trainer.test_freq=4", "data.val_max_samples=32"]
    command += ["data.train_batch_size=8", "actor_rollout_ref.rollout.n=4", *SHARED_SEQUENCES, *STATES_ON_THE_HOST]
    values = environment(work, RUN=str(run), METHOD="dppo_topk", RANKS="2", STEPS="8", **stand_in.variables())
    tracker = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    first = subprocess.Popen(command, env=values, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 900
    while not (tracker.exists() and int(tracker.read_text() or 0) >= 4):
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    driver = next(p for p in supervise.processes_of(run.resolve()) if "verl.trainer.main_ppo" in p.cmdline())
    os.kill(driver.pid, signal.SIGKILL)
    output, _ = first.communicate(timeout=120)
    assert first.returncode != 0
    assert "signal 9" in output
    assert not list(supervise.processes_of(run.resolve()))
    checkpoint = int(tracker.read_text())
    assert 4 <= checkpoint < 8

    second = subprocess.run(command, env=values, capture_output=True, text=True, timeout=1500)
    assert second.returncode == 0, second.stdout[-4000:] + second.stderr[-4000:]
    starts = sorted((run / "logs").glob("metrics-*.jsonl"))
    resumed = [json.loads(line)["step"] for line in starts[-1].read_text().splitlines()]
    assert [step for step in resumed if step > checkpoint] == list(range(checkpoint + 1, 9))
    assert {record["step"] for record in records(run)} >= set(range(1, 9))
    gaps = [record["data"].get(P + "first_update/divergence_mean") for record in records(run)]
    assert max(gap for gap in gaps if gap is not None) < 1e-5
    recorded = replays_exactly(run)  # every gate again from what was recorded, with the top-K
    assert set(recorded) == set(range(1, 9))
    assert sum(tokens for _, tokens in recorded.values()) > 8 * 8  # responses a step
    assert "inspect.html" in (run / "report" / "report.html").read_text(encoding="utf-8")
    assert (run / "report" / "inspect.html").stat().st_size > 10_000
    assert (run / "report" / "report.html").stat().st_size > 10_000
    assert (run / "report" / "report.png").stat().st_size > 10_000
    assert not list(supervise.processes_of(run.resolve()))
