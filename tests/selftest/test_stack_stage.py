"""The stages of the whole stack without starting it: their command lines, and what they make of a log."""

import json
from pathlib import Path

import pytest

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.reporting import metrics as names
from cppo_verl.selftest import stack
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.stages import STAGES
from cppo_verl.selftest.table import FAILS

STACK = [stage for stage in STAGES if stage.module == "cppo_verl.selftest.stack"]
FIRST, LATER, MASKED = "first-update gap, first of them", "first-update gap, later", "masked before any update"
NORMS, SOME = "gradient norms finite and above 0", "steps with something to learn"


def setting(out: Path, stage, device: str = "cpu", ranks: int = 2) -> Setting:
    return Setting(out, device, ranks, steps=4, stage=stage.name, options=dict(stage.options))


@pytest.mark.parametrize(
    ("name", "device", "machine", "ranks"),
    [
        ("one-binary", "cpu", 2, 1),
        ("all-topk", "cpu", 2, 2),
        ("one-topk", "cuda", 1, 1),
        ("all-binary", "cuda", 8, 8),
        ("all-sp2", "cuda", 7, 6),
    ],
)
def test_the_start_check_takes_the_command_line(name, device, machine, ranks, tmp_path):
    """GPUs' command lines too: what they hold is checked on paper, what they do only a GPU can show."""
    made = setting(tmp_path, next(stage for stage in STACK if stage.name == name), device, machine)
    head, *rest = stack.overrides(made)
    config = presets.compose(head.removeprefix("+trust_region="), rest)
    checks.require(config)
    assert ("+platform=cpu" in rest) == (device == "cpu")
    assert config.actor_rollout_ref.model.use_remove_padding is True
    sp = config.actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size
    assert (config.trainer.n_gpus_per_node, sp) == (ranks, 2 if name == "all-sp2" else 1)
    estimator = config.actor_rollout_ref.actor.policy_loss.estimator
    assert estimator == ("binary" if name.endswith("binary") else "topk")


def log(run: Path, steps, alarms: int = 0, **changed) -> None:
    """A log as verl's file logger writes it, sane but for what is changed, step by step."""
    (run / "logs").mkdir(parents=True)
    with (run / "logs/metrics-20260101T000000Z.jsonl").open("w") as file:
        for i, step in enumerate(steps):
            data = {
                names.FIRST_UPDATE: 2e-9,
                stack.FIRST_MASKED: 0.0,
                names.DIVERGENCE_MEAN: 0.01,
                names.GRAD_NORM: 0.5,
                names.ZERO_VARIANCE: 0.25,
                names.TIME_STEP: 1.5,
                names.TIME_GEN: 0.5,
                names.TIME_UPDATE: 0.7,
            }
            data |= {key: values[i] for key, values in changed.items()}
            file.write(json.dumps({"step": step, "data": data}) + "\n")
    lines = ["fine"] * 3 + ["(pid=1) TRUST REGION ALARM: gap"] * alarms
    (run / "logs/console-20260101T000000Z.log").write_text("\n".join(lines))


STEPS = (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("found", "steps", "alarms", "changed"),
    [
        (set(), STEPS, 0, {}),
        ({"steps in the log"}, (1, 2, 4), 0, {}),
        ({FIRST}, STEPS, 0, {names.FIRST_UPDATE: [1e-3, 2e-9, 2e-9, 2e-9]}),
        ({LATER}, STEPS, 0, {names.FIRST_UPDATE: [2e-9, 2e-9, 0.003, 2e-9]}),
        ({MASKED}, STEPS, 0, {stack.FIRST_MASKED: [0, 0, 0.2, 0]}),
        ({"alarms"}, STEPS, 1, {}),
        ({NORMS}, STEPS, 0, {names.GRAD_NORM: [0.5, 0.0, 0.5, 0.5]}),
        ({NORMS}, STEPS, 0, {names.GRAD_NORM: [0.5, None, 0.5, 0.5]}),
        (set(), STEPS, 0, {names.GRAD_NORM: [0.5, 0.0, 0.5, 0.5], names.ZERO_VARIANCE: [0, 1, 0, 0]}),
        ({SOME, LATER}, STEPS, 0, {names.ZERO_VARIANCE: [1, 1, 1, 0]}),
        ({SOME}, STEPS, 0, {names.ZERO_VARIANCE: [1, 1, 1, 1]}),
        ({"updates move the policy"}, STEPS, 0, {names.DIVERGENCE_MEAN: [2e-9] * 4}),
    ],
)
def test_what_is_wrong_in_a_log_is_found(tmp_path, found, steps, alarms, changed):
    made = setting(tmp_path, STACK[0])
    log(made.run, steps, alarms, **changed)
    rows = list(stack.log_rows(made))
    assert {row.what.split(":")[0] for row in rows if row.verdict == FAILS} == found


def test_the_mass_of_the_top_k_is_looked_at(tmp_path):
    made = setting(tmp_path, next(stage for stage in STACK if stage.name == "one-topk"))
    log(made.run, range(1, 9), **{"actor/trust_region/topk_mass": [0.9, 0.8, 1.2, *[0.9] * 5]})
    assert [row.what for row in stack.log_rows(made) if row.verdict == FAILS] == [
        "mass of the top-K and the sampled token in (0, 1]"
    ]


def test_stages_have_names_titles_and_more_time_than_expected():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    for stage in STAGES:
        assert set(stage.seconds) == {"cpu", "cuda"} and max(stage.seconds.values()) * 4 <= stage.limit
        assert all(name in {other.name for other in STAGES} for name in stage.needs.after)
