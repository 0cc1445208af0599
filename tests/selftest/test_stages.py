"""Stages hold as the package is, and find what is wrong on a device; those of the stack without starting it."""

import json

import pytest
import torch
import verl  # noqa: F401  (loads the plug-in)

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.integration.topk import logits
from cppo_verl.reporting.logs import read_run
from cppo_verl.selftest import stage_losses, stage_rules, stage_stack
from cppo_verl.selftest.inputs import responses
from cppo_verl.selftest.measure import registered_losses
from cppo_verl.selftest.session import STAGES
from cppo_verl.selftest.stage import Setting
from cppo_verl.trust_region import rules
from tests.selftest import failed, machine, table

# ---- rules and losses


def decided(tmp_path, name: str, rows: int = 24, width: int = 512) -> set[str]:
    """What fails of a rule and of the divergences."""
    found, pairs = table(tmp_path), [stage_rules.paired(responses(rows, width), "cpu")]
    stage_rules.test_decisions(name, pairs, found)
    for kind in stage_rules.KINDS:
        stage_rules.test_divergence(kind, pairs, found)
    return failed(found.rows)


@pytest.mark.parametrize("name", sorted(rules.BUILT_IN))
def test_every_rule_holds(name, tmp_path):
    assert not decided(tmp_path, name, 6, 64)


def test_a_device_that_rounds_more_than_float32_is_found(monkeypatch, tmp_path):
    assert not decided(tmp_path, "cppo")
    honest = rules.Tokens.divergence

    def coarse(tokens, kind):
        exact = honest(tokens, kind)
        return exact if exact.dtype == torch.float64 else exact.half().float()

    monkeypatch.setattr(rules.Tokens, "divergence", coarse)
    assert decided(tmp_path, "cppo") == {"cppo", "binary TV", "binary KL"}


def test_a_rule_from_outside_is_compared_too(monkeypatch, tmp_path):
    dppo, factor = rules.RULES["dppo"], {torch.float32: 1.05, torch.float64: 1.0}
    monkeypatch.setitem(rules.RULES, "stranger", dppo)
    assert not decided(tmp_path, "stranger")
    monkeypatch.setitem(rules.RULES, "stranger", lambda t, d, knobs: dppo(t, factor[d.dtype] * d, knobs))
    assert decided(tmp_path, "stranger") == {"stranger"}


@pytest.mark.parametrize("factor", [1, 1.001])
def test_a_gradient_that_is_off_by_a_thousandth_is_found(factor, monkeypatch, tmp_path):
    found, cppo = table(tmp_path), registered_losses()["cppo"]

    def scaled(log_prob, *given):
        exact = log_prob.dtype == torch.float64
        return cppo(log_prob if exact else factor * log_prob - (factor - 1) * log_prob.detach(), *given)

    monkeypatch.setattr(stage_losses, "registered_losses", lambda: {"cppo": scaled})
    stage_losses.test_gradients(torch.float32, machine(tmp_path), found)
    assert bool(failed(found.rows)) == (factor != 1)


MUTATIONS = {
    "honest": lambda index, k: index,
    "position": lambda index, k: index.roll(1, 0),
    "sampled": lambda index, k: torch.cat([index[:, :k], index[:, :1]], -1),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_gather_is_found(mutation, monkeypatch, tmp_path):
    index, found = logits.token_index, table(tmp_path)
    monkeypatch.setattr(logits, "token_index", lambda data, k: MUTATIONS[mutation](index(data, k), k))
    stage_losses.test_topk_from_logits(torch.float32, 0.7, machine(tmp_path), found)
    assert bool(failed(found.rows)) == (mutation != "honest")


# ---- the whole stack


def of_stage(tmp_path, name: str, device: str = "cpu", ranks: int = 2) -> Setting:
    return machine(tmp_path, device, ranks, stage=name, options=dict(STAGES[name].options))


@pytest.mark.parametrize(
    ("name", "device", "there", "ranks"),
    [("one-topk", "cpu", 2, 1), ("all-binary", "cuda", 8, 8), ("all-sp2", "cuda", 7, 6)],
)
def test_the_start_check_takes_the_command_line(name, device, there, ranks, tmp_path):
    """GPUs' command lines too: what they hold is checked on paper, what they do only a GPU can show."""
    folder = tmp_path / "a, b=c"  # paths are quoted
    head, *rest = stage_stack.overrides(of_stage(folder, name, device, there))
    config = presets.compose(head.removeprefix("+trust_region="), rest)
    checks.require(config)
    assert ("+platform=cpu" in rest) == (device == "cpu") and config.data.train_files.startswith(str(folder))
    actor = config.actor_rollout_ref.actor
    sp = actor.fsdp_config.ulysses_sequence_parallel_size
    assert (config.trainer.n_gpus_per_node, sp) == (ranks, 2 if name == "all-sp2" else 1)
    assert actor.policy_loss.estimator == ("binary" if name.endswith("binary") else "topk")


P = stage_stack.P
NORM, GAP, ZERO = "actor/grad_norm", P + "first_update/divergence_mean", "trust_region/zero_variance_share"
SANE = {GAP: 2e-9, P + "first_update/masked_share": 0.0, P + "divergence_mean": 0.01, NORM: 0.5, ZERO: 0.25}
SANE |= {P + "topk_mass": 0.9}
FIRST, LATER = "first-update gap, first of them", "first-update gap, later"
NORMS, SOME = "gradient norms finite and above 0", "steps with something to learn"
WRONG = [
    (set(), {}),
    ({"steps in the log"}, {"step": [1, 2, 4, 5]}),
    ({FIRST}, {GAP: [1e-3, 2e-9, 2e-9, 2e-9]}),
    ({LATER}, {GAP: [2e-9, 2e-9, 0.003, 2e-9]}),
    ({"masked before any update"}, {P + "first_update/masked_share": [0, 0, 0.2, 0]}),
    ({"alarms"}, {"alarms": [1, 0, 0, 0]}),
    ({NORMS}, {NORM: [0.5, None, 0.5, 0.5]}),
    ({SOME}, {ZERO: [1, 1, 1, 1]}),
    ({"updates move the policy"}, {P + "divergence_mean": [2e-9] * 4}),
    ({"mass of the top-K and the sampled token in (0, 1]"}, {P + "topk_mass": [0.9, 1.2, *[0.9] * 6]}),
]


@pytest.mark.parametrize(("found", "changed"), WRONG)
def test_what_is_wrong_in_a_log_is_found(tmp_path, found, changed):
    made, rows = of_stage(tmp_path, "one-topk" if P + "topk_mass" in changed else "one-binary"), table(tmp_path)
    (made.run / "logs").mkdir(parents=True)
    count = len(next(iter(changed.values()), [0] * 4))
    lines = [SANE | {"step": i + 1} | {key: values[i] for key, values in changed.items()} for i in range(count)]
    logged = [{"step": line.pop("step"), "data": line} for line in lines]
    (made.run / "logs/metrics-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    alarms = sum(changed.get("alarms", [0]))
    (made.run / "logs/console-1.log").write_text("(pid=1) TRUST REGION ALARM: gap\n" * alarms)
    stage_stack.test_log(made, rows, read_run(made.run).frame)
    assert failed(rows.rows) == found
