"""The real stack on CPU: Ray, TransferQueue, FSDP2 over gloo and vLLM's CPU engine. Minutes, not seconds.

CPPO_VERL_STEPS_EACH=N trains every preset for N steps instead of three.
"""

import json
import math
import os

import pytest

from cppo_verl import presets
from cppo_verl.launch import supervise
from tests import ROOT
from tests.recording.exact import replays_exactly

from .conftest import Resumed
from .runs import P, Work, ended_well, quickstart, records

STEPS_EACH = int(os.environ.get("CPPO_VERL_STEPS_EACH", "3"))
PRESETS = presets.names()
WHOLE_RESPONSES = ("gspo", "trm_avg", "trm_max")  # what they mask


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
        "actor_rollout_ref.rollout.temperature=1.3",  # at 1 the last presets find nearly every answer right
        "actor_rollout_ref.model.use_fused_kernels=true",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        METHOD="cppo_topk",
        RUN=str(run),
        STEPS=str(STEPS_EACH * len(PRESETS)),
        VERL_USE_EXTERNAL_MODULES="tests.e2e.rotating",
        PYTHONPATH=str(ROOT),
    )
    ended_well(done)
    steps = [record["data"] for record in records(run) if record["step"] > 0]
    assert len(steps) == STEPS_EACH * len(PRESETS)
    return {name: steps[i * STEPS_EACH : (i + 1) * STEPS_EACH] for i, name in enumerate(PRESETS)}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_through_the_real_stack(every_preset, preset):
    steps = every_preset[preset]
    trained = [step for step in steps if step["trust_region/zero_variance_share"] < 1]
    assert len(trained) >= max(2, STEPS_EACH // 2)
    for step in trained:
        assert all(math.isfinite(v) for v in step.values() if isinstance(v, int | float))
        # all there is to learn from may come after an update that Adam's momentum alone made, and be taken whole
        taken = preset in WHOLE_RESPONSES and step[P + "masked_share"] == 1
        assert step["actor/grad_norm"] > 0 or taken
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
    assert any(step["actor/grad_norm"] > 0 for step in trained)
    # updates after a step's first one have moved away from the rollout
    assert any(step[P + "divergence_mean"] > 2 * step[P + "first_update/divergence_mean"] for step in trained)
    if preset == "cispo":  # the first turn, while probabilities still move much
        assert any(step[P + "ratio_capped_share"] > 0 for step in trained)


def test_the_processes_of_a_run_are_forked(resumed: Resumed):
    assert {"ray::TaskRunnerV1", "ray::WorkerDict", "ray::TopKHttpServer", "VLLM::EngineCore"} <= resumed.forked


def test_a_killed_two_rank_run_resumes_and_reports(resumed: Resumed):
    """SIGKILL of the driver after a checkpoint; the same command goes on there and ends with a report."""
    assert resumed.status != 0
    assert "signal 9" in resumed.output
    assert not resumed.left_behind
    assert 2 <= resumed.checkpoint < 4

    starts = sorted((resumed.run / "logs").glob("metrics-*.jsonl"))
    second = [json.loads(line)["step"] for line in starts[-1].read_text().splitlines()]
    assert [step for step in second if step > resumed.checkpoint] == list(range(resumed.checkpoint + 1, 5))
    logged = records(resumed.run)
    assert {record["step"] for record in logged} >= set(range(1, 5))
    gaps = [record["data"].get(P + "first_update/divergence_mean") for record in logged]
    assert max(gap for gap in gaps if gap is not None) < 1e-5
    recorded = replays_exactly(resumed.run)  # every gate again from what was recorded, with the top-K
    assert set(recorded) == set(range(1, 5))
    assert sum(tokens for _, tokens in recorded.values()) > 4 * 8  # steps, responses of each
    assert "inspect.html" in (resumed.run / "report" / "report.html").read_text(encoding="utf-8")
    assert (resumed.run / "report" / "inspect.html").stat().st_size > 10_000
    assert (resumed.run / "report" / "report.html").stat().st_size > 10_000
    assert (resumed.run / "report" / "report.png").stat().st_size > 10_000
    assert not list(supervise.processes_of(resumed.run.resolve()))
