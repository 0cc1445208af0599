"""The stage ``recipe`` without starting a run: the script's command line, prompts that fill their room, the table."""

import pandas
import pytest

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.reporting import metrics as names
from cppo_verl.selftest import recipe_step
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.setting import Setting, StageError
from cppo_verl.selftest.table import FAILS, HOLDS, NOTED
from cppo_verl.selftest.watched_run import Usage
from data_prep.tiny_model import build_tokenizer
from recipe import hours, memory, settings
from recipe.shapes import SHAPES

ON_CPU, ON_GPUS = Machine("cpu"), Machine("cuda", gpus=("H100",) * 8, gpu_gb=80)


def setting(tmp_path, name: str, device: str, here: Machine) -> Setting:
    overrides = recipe_step.overrides(name, "", here)
    return Setting(tmp_path, device, here.ranks, here.gpu_gb, recipe=name, overrides=overrides, stage="recipe")


@pytest.mark.parametrize(
    ("name", "device", "here"),
    [("qwen3_1p7b", "cpu", ON_CPU), ("qwen3_8b_base", "cuda", ON_GPUS), ("qwen3_30b_a3b_base", "cuda", ON_GPUS)],
)
def test_the_scripts_own_command_line_with_the_stages_changes(name, device, here, tmp_path):
    made = setting(tmp_path, name, device, here)
    head, *rest = [*made.overrides, *recipe_step.own_overrides(made)]
    config = presets.compose(head.removeprefix("+trust_region="), rest)
    checks.require(config)
    assert config.trainer.total_training_steps == 1 and config.trainer.test_freq == -1
    assert config.actor_rollout_ref.rollout.ignore_eos is True
    assert config.trainer.v1.trust_region.skip_zero_variance is False
    assert config.reward.custom_reward_function.path.endswith("cppo_verl/selftest/coin.py")
    s = settings.read([head, *rest])
    assert s.estimator == "topk" and s.steps == 1
    assert s.longest == (112 if device == "cpu" else 1024 + (16384 if "30b" in name else 8192))
    assert s.gpus_per_node == (1 if device == "cpu" else 8)


def test_the_model_goes_to_the_script_and_so_do_its_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("N", "16")
    monkeypatch.setenv("METHOD", "dppo")
    given = settings.parse(recipe_step.overrides("qwen3_8b_base", str(tmp_path), ON_CPU))
    assert given["actor_rollout_ref.model.path"] == str(tmp_path)
    assert given["actor_rollout_ref.rollout.n"] == "16"
    assert given["trust_region"] == "dppo_tv"
    monkeypatch.setenv("METHOD", "dpo")
    with pytest.raises(StageError, match="METHOD='dpo' is not one of"):
        recipe_step.overrides("qwen3_8b_base", "", ON_CPU)


@pytest.mark.parametrize("tokens", [40, 48, 200])
def test_prompts_fill_their_room(tokens):
    tokenizer = build_tokenizer()
    lengths = []
    for index in (0, 7, 123):
        chat = [{"role": "user", "content": recipe_step.filling(tokenizer, index, tokens)}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        lengths.append(len(tokenizer.encode(text, add_special_tokens=False)))
    assert all(tokens - 2 < length <= tokens for length in lengths)


def test_a_template_longer_than_the_room_is_named():
    with pytest.raises(StageError, match="no room for the model's chat template"):
        recipe_step.filling(build_tokenizer(), 0, 5)


STEP = {
    names.TIME_GEN: 300.0,
    names.TIME_UPDATE: 60.0,
    names.TIME_STEP: 380.0,
    names.FIRST_UPDATE: 0.001,
    names.GRAD_NORM: 0.1,
    "response_length/min": 8192.0,
    "prompt_length/min": 1020.0,
    recipe_step.MAX_ALLOCATOR: 40.0,
}


def judge(tmp_path, usage: Usage, **changed) -> dict[str, str]:
    """Verdicts on a made-up step of the 8B recipe on made-up GPUs."""
    made = setting(tmp_path, "qwen3_8b_base", "cuda", ON_GPUS)
    s = settings.read(made.overrides)
    need = memory.estimate(SHAPES["qwen3_8b_base"], s, 80e9)
    spent = hours.estimate(SHAPES["qwen3_8b_base"], s, need, hours.Assumptions(mean_response=1.0))
    step = {**STEP, **changed}
    rows = [*recipe_step.lengths(step, s), *recipe_step.sanity(made, step)]
    rows += [*recipe_step.memory_rows(made, step, need, usage), *recipe_step.time_rows(made, step, spent)]
    assert all(row.predicted is not None or row.limit is not None for row in rows)
    return {row.what: row.verdict for row in rows}


def test_a_step_that_is_as_its_plan_says(tmp_path):
    assert set(judge(tmp_path, Usage(host=120, gpu=70)).values()) == {HOLDS, NOTED}


@pytest.mark.parametrize(
    ("what", "usage", "changed"),
    [
        ("training: peak of the trainer's allocator", Usage(gpu=70), {recipe_step.MAX_ALLOCATOR: 60.0}),
        ("peak memory of the fullest GPU", Usage(gpu=81), {}),
        ("seconds, generation", Usage(gpu=70), {names.TIME_GEN: 5000.0, names.TIME_STEP: 5080.0}),
        ("seconds, update", Usage(gpu=70), {names.TIME_UPDATE: 5000.0, names.TIME_STEP: 5320.0}),
        ("seconds, other", Usage(gpu=70), {names.TIME_STEP: 5000.0}),
        ("response tokens, shortest", Usage(gpu=70), {"response_length/min": 900.0}),
        ("room left in the shortest prompt", Usage(gpu=70), {"prompt_length/min": 200.0}),
        ("first-update gap", Usage(gpu=70), {names.FIRST_UPDATE: 0.5}),
        ("gradient norm above 0", Usage(gpu=70), {names.GRAD_NORM: 0.0}),
    ],
)
def test_what_is_beyond_the_plan_fails(what, usage, changed, tmp_path):
    verdicts = judge(tmp_path, usage, **changed)
    assert [name for name, verdict in verdicts.items() if verdict == FAILS] == [what]


def test_validation_has_other_prompts_than_training(tmp_path):
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    made = Setting(tmp_path, "cpu", 1, stage="recipe")
    recipe_step.write_prompts(made, str(tmp_path / "tokenizer"), 4, 24)
    train, val = (pandas.read_parquet(recipe_step.prompts_of(made, split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 1)
    assert len({prompt[0]["content"] for frame in (train, val) for prompt in frame["prompt"]}) == 5
