"""The studies: their plans are whole, their reading says what the plan fixed; what is counted in answers."""

import json

import pandas
import pytest

from benchmarks import same_tokens, study, worked_sums
from cppo_verl import presets
from tests.data_prep.test_validations import write

REAL = study.load("real_model")
P = "actor/trust_region/"


def finish(run: study.Run, accuracy: float, masked: float = 0.01) -> None:
    """A finished run with ``accuracy`` of ten questions right at its end and two at its start."""
    course = {"timing_s/step": 3.0, "training/off_policy/trajectory_staleness_worst/mean": 1.5}
    course |= {P + "divergence_mean": 0.004, "timing_per_token_ms/gen": 4.0, "timing_per_token_ms/update_actor": 2.0}
    (run.folder / "logs").mkdir(parents=True)
    lines: list[dict] = [{"step": 0, "data": {"val-core/rg/acc/mean@2": 0.2}}]
    lines += [{"step": step, "data": {P + "masked_share": masked * (step % 2), **course}} for step in range(1, 61)]
    (run.folder / "logs/metrics-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, share in ((0, 0.2), (60, accuracy)):
        write(run.folder, step, {str(question): [question < 10 * share] for question in range(10)})


@pytest.mark.parametrize(("name", "arms", "count", "steps"), [("real_model", 4, 13, "20"), ("stale", 10, 30, "60")])
def test_a_plan_has_its_runs_and_every_method_is_a_preset(name, arms, count, steps, tmp_path):
    plan = study.load(name)
    runs = study.runs(plan, tmp_path)
    assert len(runs) == count and len({run.folder for run in runs}) == count
    assert {run.variables["METHOD"] for run in runs} <= set(presets.names())
    assert [run.seed for run in runs[:arms]] == [0] * arms  # seed by seed
    values = runs[0].environment()
    assert (values["METHOD"], values["SEED"], values["STEPS"]) == ("cppo", "0", steps)
    assert (study.ROOT / plan["command"]).is_file()
    assert {arm for pair in plan.get("pairs", ()) for arm in pair} <= set(plan["arms"])
    with pytest.raises(FileNotFoundError, match="no study 'quick': real_model, stale"):
        study.load("quick")


def test_only_finished_runs_are_read(tmp_path):
    assert study.read(REAL, tmp_path) == "0 of 13 runs are finished"
    by_name = {(run.arm, run.seed): run for run in study.runs(REAL, tmp_path)}
    for seed, (cppo, grpo) in enumerate([(0.9, 0.6), (0.8, 0.5)]):
        finish(by_name["cppo", seed], cppo)
        finish(by_name["grpo", seed], grpo, masked=0.0)
    text = study.read(REAL, tmp_path)
    assert text.startswith("4 of 13 runs are finished")
    assert (
        "cppo seed 0: 0.200 to 0.900, +0.700, standard error 0.153: rises by more than 3 of them; masked in 50% of the "
        "steps, 0.50% of the tokens; mean divergence 0.00400; 1.50 versions behind; 3.00 s a step; "
        "rollout 250 tokens a second; update 500 tokens a second" in text
    )
    assert "grpo seed 1: 0.200 to 0.500, +0.300, standard error 0.153: does not rise" in text
    assert "cppo - grpo at the end: +0.300, 95% +0.300 to +0.300, 2 seeds" in text
    own = study.read(REAL | {"pairs": [["grpo", "cppo"]]}, tmp_path)  # a plan may name its pairs
    assert own.count("at the end") == 1 and "grpo - cppo at the end: -0.300" in own


def test_a_run_that_fails_stops_the_study_and_finished_ones_are_not_started(tmp_path, monkeypatch):
    script = tmp_path / "script.sh"
    script.write_text(f'echo "$METHOD $SEED $STEPS $*" >> {tmp_path}/started; [ "$METHOD" != grpo ]')
    monkeypatch.setattr(study, "ROOT", tmp_path)
    own = {"dppo_tv": REAL["arms"]["dppo_tv"] | {"overrides": ["trainer.x=1"]}}
    plan = REAL | {"command": script.name, "arms": REAL["arms"] | own}
    finish(study.runs(plan, tmp_path)[0], 0.9)
    assert study.start(plan, tmp_path) == 1
    assert (tmp_path / "started").read_text().split("\n") == ["dppo_tv 0 20 trainer.x=1", "grpo 0 20 ", ""]


def test_engines_are_compared_token_by_token():
    one = [[(1, -0.5), (2, -1.0)], [(3, -0.25)]]
    other = [[(1, -0.5), (2, -1.25)], [(4, -0.25)]]
    found = same_tokens.compare(one, other)
    assert found == {"prompts": 2, "same_prompts": 1, "tokens": 3, "largest_gap": pytest.approx(0.25)}


def entry(asked: str, *lines: str) -> dict[str, str]:
    return {"input": f"user\nState the final answer: {asked} =\nassistant\n", "output": "\n".join(lines)}


def test_lines_of_sums_are_counted_by_their_sign_and_long_answers_found():
    found = worked_sums.count(
        pandas.DataFrame(
            [
                entry("3 - 3 + 6", "3-3=-0", "0+6=6"),  # -0 is 0
                entry("5 - 9 + 1", "5-9=-4", "-4+1=-5"),
                entry("8 + 9", "8+9=17", "17+2=19"),  # a line more than asked
                entry("4 - 1", "what?"),
            ]
        )
    )
    assert found == {"too long": pytest.approx(1 / 4), "+": pytest.approx(3 / 4), "-": 1}
