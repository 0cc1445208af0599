"""Stages hold as the package is, and find what is wrong on a device; those of the stack without starting it."""

import dataclasses
import json

import pandas
import pytest
import torch
import verl  # noqa: F401  (loads the plug-in)

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.integration.topk import logits
from cppo_verl.reporting.logs import read_run
from cppo_verl.selftest import stage_losses, stage_recipe, stage_rules, stage_stack
from cppo_verl.selftest.inputs import responses
from cppo_verl.selftest.measure import registered_losses
from cppo_verl.selftest.session import STAGES
from cppo_verl.selftest.setting import SelftestError, Setting, recipe_overrides
from cppo_verl.trust_region import rules
from data_prep.tiny_qwen3 import build_tokenizer
from recipe import settings
from tests.selftest import failed, machine, table

# ---- rules and losses


def decided(tmp_path, name: str) -> set[str]:
    """What fails of a rule and of the divergences."""
    found, pairs = table(tmp_path), [stage_rules.paired(responses(24, 512), "cpu")]
    stage_rules.test_decisions(name, pairs, found)
    for kind in stage_rules.KINDS:
        stage_rules.test_divergence(kind, pairs, found)
    return failed(found.rows)


@pytest.mark.parametrize("name", sorted(rules.BUILT_IN))
def test_every_rule_holds(name, tmp_path):
    assert not decided(tmp_path, name)


def test_a_device_that_rounds_more_than_float32_is_found(monkeypatch, tmp_path):
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
    "order": lambda index, k: torch.cat([index[:, :k].roll(1, -1), index[:, k:]], -1),
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
    [("all-topk", "cpu", 2, 2), ("one-topk", "cuda", 1, 1), ("all-binary", "cuda", 8, 8), ("all-sp2", "cuda", 7, 6)],
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
    ({NORMS}, {NORM: [0.5, 0.0, 0.5, 0.5]}),
    ({NORMS}, {NORM: [0.5, None, 0.5, 0.5]}),
    (set(), {NORM: [0.5, 0.0, 0.5, 0.5], ZERO: [0, 1, 0, 0]}),
    ({SOME, LATER}, {ZERO: [1, 1, 1, 0]}),
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


# ---- a recipe's step


def of_recipe(tmp_path, name: str, device: str) -> Setting:
    return machine(tmp_path, device, 8, recipe=name, overrides=recipe_overrides(name, "", device, 8), stage="recipe")


@pytest.mark.parametrize(("name", "device"), [("qwen3_1p7b", "cpu"), ("qwen3_30b_a3b_base", "cuda")])
def test_the_scripts_own_command_line_with_the_stages_changes(name, device, tmp_path, monkeypatch):
    monkeypatch.setenv("METHOD", "dppo")
    head, *rest = stage_recipe.command(of_recipe(tmp_path / "a, b", name, device))
    config = presets.compose(head.removeprefix("+trust_region="), rest)
    checks.require(config)
    assert head == "+trust_region=dppo_tv"  # the script's own variables count
    assert config.data.val_files == [str(tmp_path / "a, b/runs/recipe-val.parquet")]
    assert (config.trainer.total_training_steps, config.actor_rollout_ref.rollout.ignore_eos) == (1, True)
    s = settings.read([head, *rest])
    assert (s.longest, s.gpus_per_node) == ((112, 1) if device == "cpu" else (1024 + 16384, 8))
    monkeypatch.setenv("METHOD", "dpo")
    with pytest.raises(SelftestError, match="METHOD='dpo' is not one of"):
        of_recipe(tmp_path, name, device)


def test_prompts_fill_their_room_and_validation_has_its_own(tmp_path):
    tokenizer, made = build_tokenizer(), machine(tmp_path, stage="recipe")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    stage_recipe.write_prompts(made, str(tmp_path / "tokenizer"), 4, 48)
    train, val = (pandas.read_parquet(stage_recipe.prompts_of(made, split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 1)
    chats = [list(chat) for chat in (*train["prompt"], *val["prompt"])]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    assert len(set(texts)) == 5
    assert all(46 < len(tokenizer.encode(text, add_special_tokens=False)) <= 48 for text in texts)
    with pytest.raises(SelftestError, match="no room for the model's chat template"):
        stage_recipe.write_prompts(made, str(tmp_path / "tokenizer"), 1, 5)


STEP = {"timing_s/gen": 300.0, "timing_s/update_actor": 60.0, "timing_s/step": 380.0, NORM: 0.1, GAP: 0.001}
STEP |= {"response_length/min": 8192.0, "prompt_length/min": 1020.0, stage_recipe.MAX_ALLOCATOR: 40.0}
OFF = {
    "": {},
    "training": {stage_recipe.MAX_ALLOCATOR: 60.0},
    "seconds, generation": {"timing_s/gen": 5000.0, "timing_s/step": 5080.0},
    "seconds, update": {"timing_s/update_actor": 5000.0, "timing_s/step": 5320.0},
    "seconds, other": {"timing_s/step": 5000.0},
    "response tokens, shortest": {"response_length/min": 900.0},
    "room left in the shortest prompt": {"prompt_length/min": 200.0},
    "first-update gap": {GAP: 0.5},
    "gradient norm above 0": {NORM: 0.0},
}


def test_a_step_is_judged_by_its_plan(tmp_path):
    """Made-up steps of the 8B recipe on made-up GPUs."""
    made = of_recipe(tmp_path, "qwen3_8b_base", "cuda")
    planned = settings.read(made.overrides)
    for what, changed in OFF.items():
        for setting in (made, dataclasses.replace(made, device="cpu")):
            rows = table(tmp_path)
            stage_recipe.judge(setting, rows, planned, "Qwen/Qwen3-8B-Base", STEP | changed)
            of_plan = what.startswith(("training", "seconds"))
            assert failed(rows.rows) == (set() if setting.on_cpu and of_plan else {what} - {""})
