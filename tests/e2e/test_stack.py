"""The real stack on CPU: Ray, TransferQueue, FSDP2 over gloo and vLLM's CPU engine. Minutes, not seconds.

One start trains the rule of docs/extending.md, every preset, and the runs that people have, a step each (of several
updates; the next one's first update shows that the weights came over). CPPO_VERL_STEPS_EACH=N trains each for N steps.
"""

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.integration import start_table
from cppo_verl.launch import supervise
from cppo_verl.launch.overrides import compose
from cppo_verl.recording import files
from tests.recording.exact import replays_exactly

from . import walk
from .conftest import Resumed
from .families import FAMILIES, LORA_FAMILIES, SKIPS, Family
from .runs import P, Work, logged, logs
from .walk import STEPS_EACH

PRESETS = presets.names()
WHOLE_RESPONSES = ("gspo", "trm_avg", "trm_max")  # what they mask


@pytest.fixture(scope="module")
def walked(own_rule: Path) -> dict[str, list[dict]]:
    return walk.by_turn(own_rule, walk.turns())


@pytest.fixture(scope="module")
def walked_with_lora(work: Work) -> dict[str, list[dict]]:
    return walk.by_turn(walk.with_lora(work), LORA_FAMILIES)


def check_step(step: dict, topk: bool, rule: str) -> None:
    """What holds of any step that had something to learn from."""
    assert all(math.isfinite(v) for v in step.values() if isinstance(v, int | float))
    # float32 in both engines: at equal weights they agree (but for the coding of top-K log-probs in transport)
    assert step[P + "first_update/divergence_mean"] < (1e-3 if topk else 1e-6)
    assert (P + "topk_mass" in step) == topk
    assert step[P + "divergence_mean"] >= step[P + "first_update/divergence_mean"]
    parts = step[P + "masked_share_token_threshold"] + step[P + "masked_share_prefix_budget"]
    assert step[P + "masked_share"] == pytest.approx(parts, abs=1e-6)
    assert (P + "effective_delta_b" in step) == (rule == "cppo")
    if rule not in ("cppo", "cutoff"):  # what a rule from outside does not put down to the token counts there
        assert step[P + "masked_share_prefix_budget"] == 0


@pytest.mark.parametrize("preset", ["cutoff", *PRESETS])
def test_every_preset_trains_through_the_real_stack(walked, preset):
    rule = preset.partition("_")[0]
    trained = [step for step in walked[preset] if step["trust_region/zero_variance_share"] < 1]
    assert len(trained) >= max(1, STEPS_EACH // 2)
    for step in trained:
        check_step(step, preset.endswith("_topk"), rule)
        # all there is to learn from may come after an update that Adam's momentum alone made, and be taken whole
        taken = preset in WHOLE_RESPONSES and step[P + "masked_share"] == 1
        assert step["actor/grad_norm"] > 0 or taken
        if preset in ("minpro", "cispo"):
            assert step[P + "masked_share"] == 0
    for step in moved(trained):
        assert step[P + "divergence_mean"] > 2 * step[P + "first_update/divergence_mean"]


def test_rules_on_whole_responses_train(walked):
    assert any(step["actor/grad_norm"] > 0 for preset in WHOLE_RESPONSES for step in walked[preset])


def moved(steps: list[dict]) -> list[dict]:
    """Those whose later updates had something to learn from, too: they see a policy away from the rollout."""
    return [step for step in steps if step[P + "divergence_mean"] != step[P + "first_update/divergence_mean"]]


def test_most_steps_move_away_from_the_rollout(walked):
    steps = [step for preset in PRESETS for step in walked[preset]]
    assert len(moved(steps)) > len(steps) / 2


def test_it_was_the_pages_rule_with_the_pages_knobs(own_rule: Path):
    knobs = OmegaConf.load(own_rule / "config.yaml").actor_rollout_ref.actor.policy_loss
    assert (knobs.loss_mode, knobs.delta, knobs.grace) == ("cutoff", 0.1, 2)
    assert Path(knobs.rule_module).is_file() and Path(knobs.rule_module).name == "cutoff.py"
    assert "rule          cutoff, of the preset cutoff" in (own_rule / start_table.FILE).read_text()
    report = (own_rule / "report/report.md").read_text()
    assert "cutoff" in report and "grace" in report


@pytest.mark.parametrize("name", FAMILIES)
def test_the_runs_people_have(walked, name):
    check_family(FAMILIES[name], walked[name])


@pytest.mark.parametrize("name", LORA_FAMILIES)
def test_adapters(walked_with_lora, name):
    check_family(LORA_FAMILIES[name], walked_with_lora[name])


def check_family(family: Family, steps: list[dict]) -> None:
    """The table of its start is right, and its own metrics say that it trained what was asked for."""
    given = walk.arguments(family)
    said = " ".join(" ".join(start_table.lines(compose(given), given)).split())
    assert [words for words in family.said if words not in said] == []
    trained = [step for step in steps if step["actor/grad_norm"] > 0]
    assert trained
    for step in trained:
        check_step(step, family.preset.endswith("_topk"), family.preset.partition("_")[0])
        assert [metric for metric in family.there if metric not in step] == []
        assert [metric for metric in family.absent if metric in step] == []
        assert family.holds(step)
        assert not family.all_taught or step[SKIPS] == 0


def test_a_tools_answer_is_no_token_of_the_policy(walked, own_rule: Path):
    step = STEPS_EACH * list(walk.turns()).index("tools") + 1
    masks = [response.mask.tolist() for response in next(files.read_run(own_rule, [step])).responses]
    inner = ["".join(str(int(valid)) for valid in mask).strip("0") for mask in masks]
    assert any("1" + "0" * 4 + "1" in mask for mask in inner)


def test_the_processes_of_a_run_are_forked(resumed: Resumed):
    assert {"ray::TaskRunnerV1", "ray::WorkerDict", "ray::TopKHttpServer", "VLLM::EngineCore"} <= resumed.forked


def test_a_killed_two_rank_run_resumes_and_reports(resumed: Resumed):
    """SIGKILL of the driver after a checkpoint; the same command goes on there and ends with a report."""
    assert "signal 9" in resumed.output
    assert not resumed.left_behind
    assert 2 <= resumed.checkpoint < 4

    second = [json.loads(line)["step"] for line in logs(resumed.run)[-1].read_text().splitlines()]
    assert [step for step in second if step > resumed.checkpoint] == list(range(resumed.checkpoint + 1, 5))
    steps = logged(resumed.run)
    assert max(steps[step][P + "first_update/divergence_mean"] for step in range(1, 5)) < 1e-5
    recorded = replays_exactly(resumed.run)  # every gate again from what was recorded, with the top-K
    assert set(recorded) == set(range(1, 5))
    assert sum(tokens for _, tokens in recorded.values()) > 4 * 8  # steps, responses of each
    assert "inspect.html" in (resumed.run / "report" / "report.html").read_text(encoding="utf-8")
    assert (resumed.run / "report" / "inspect.html").stat().st_size > 10_000
    assert (resumed.run / "report" / "report.html").stat().st_size > 10_000
    assert (resumed.run / "report" / "report.png").stat().st_size > 10_000
    assert not list(supervise.processes_of(resumed.run.resolve()))
