"""Stage ``recipe``: one step of a recipe with prompts and responses as long as it allows, beside what its plan says.

The recipe is its script's own command line; only data, reward and length of the run are the stage's: prompts that fill
their room, a reward by the toss of a coin, no early end of a response, no response left out of the update.
"""

from pathlib import Path

import pytest

from cppo_verl.selftest import coin, watched_run
from cppo_verl.selftest.setting import SelftestError, Setting
from recipe import hours, memory, settings
from recipe.shapes import shape_of

MEMORY, SECONDS = 1.15, 3.0  # a plan's memory errs upward; its seconds are good for an order of magnitude
MAX_ALLOCATOR = "perf/max_memory_reserved_gb"
OWN = {
    "reward.custom_reward_function.path": coin.__file__,
    "actor_rollout_ref.rollout.ignore_eos": True,
    "trainer.v1.trust_region.skip_zero_variance": False,
    "trainer.total_training_steps": 1,
    "trainer.val_before_train": False,
    "trainer.test_freq": -1,
    "trainer.save_freq": -1,
    "trainer.logger": "[console,file]",
}


def command(setting: Setting) -> list[str]:
    """The recipe's overrides, and behind them data, reward and length of the run."""
    files = {"data.train_files": prompts_of(setting, "train"), "data.val_files": f"[{prompts_of(setting, 'val')}]"}
    model = [f"actor_rollout_ref.model.path={setting.tiny_model}"] if setting.on_cpu and not setting.model else []
    platform = ["+platform=cpu"] if setting.on_cpu else []
    return [*setting.overrides, *platform, *model, *watched_run.as_overrides({**files, **OWN})]


def prompts_of(setting: Setting, split: str) -> Path:
    """File of the prompts of ``train`` or ``val``."""
    return setting.run.with_name(f"{setting.stage}-{split}.parquet")


def write_prompts(setting: Setting, model: str, count: int, tokens: int) -> None:
    """Prompts that leave no room, or one token, in verl's columns: ``count`` to train on, and one for validation."""
    import pandas
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [
        {
            "data_source": "selftest",
            "prompt": [{"role": "user", "content": filling(tokenizer, index, tokens)}],
            "reward_model": {"style": "rule", "ground_truth": "0"},
        }
        for index in range(count + 1)
    ]
    setting.run.parent.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", rows[:-1]), ("val", rows[-1:])):
        pandas.DataFrame(part).to_parquet(prompts_of(setting, split))


def filling(tokenizer, index: int, tokens: int) -> str:
    """The longest text of its kind that makes a prompt of at most ``tokens`` tokens; another one for every index.

    Raises:
        SelftestError: the chat template alone is longer.
    """

    def text(words: int) -> str:
        return " ".join([str(index), *(str(i % 10) for i in range(words))])

    def length(words: int) -> int:
        chat = [{"role": "user", "content": text(words)}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return len(tokenizer.encode(prompt, add_special_tokens=False))

    low, high = 0, tokens
    if length(low) > tokens:
        raise SelftestError(f"a prompt of {tokens} tokens has no room for the model's chat template of {length(low)}")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(middle) <= tokens else (low, middle - 1)
    return text(low)


@pytest.fixture(scope="module")
def planned(setting):
    """Settings of the recipe with the stage's changes."""
    return settings.read(command(setting))


@pytest.fixture(scope="module")
def model(setting) -> str:
    return settings.parse(command(setting))["actor_rollout_ref.model.path"]


@pytest.fixture(scope="module")
def done(setting, planned, model) -> watched_run.Start:
    """The run, at its end."""
    write_prompts(setting, model, planned.prompts, planned.prompt_tokens)
    return watched_run.start(setting, command(setting), fresh=True)


@pytest.fixture(scope="module")
def step(setting, done) -> dict[str, float]:
    """The metrics of the run's only step."""
    return watched_run.logged(setting.run).loc[1].dropna().to_dict()


@pytest.fixture(scope="module")
def need(setting, planned, model) -> memory.Memory:
    return memory.estimate(shape_of(setting.recipe, model), planned, 1e9 * (setting.gpu_gb or 80))


def test_lengths(table, planned, step):
    """Whether the step was as long as it can be."""
    table.equal("response tokens, shortest", step.get("response_length/min"), float(planned.response_tokens))
    room, limit = planned.prompt_tokens - step.get("prompt_length/min", 0.0), 0.02 * planned.prompt_tokens + 2
    table.at_most("room left in the shortest prompt", room, limit, unit="tokens")


def test_update(setting, table, step):
    """Whether the update was one."""
    floor = float(next(x.partition("=")[2] for x in [*setting.overrides, "delta_b=0.02"] if "delta_b=" in x))
    gap = step.get("actor/trust_region/first_update/divergence_mean", float("nan"))
    said = "delta_b: above it the trust region is spent before any update"
    table.at_most("first-update gap", gap, floor, note=said)
    table.equal("gradient norm above 0", step.get("actor/grad_norm", 0.0) > 0, True)
    table.equal("alarms", watched_run.alarms(setting.run), 0)


def test_memory(setting, table, step, need, done):
    """Peaks beside the plan's, on GPUs, for which it is."""
    training, peak = sum(need.training.values()) - need.training["fixed"], need.peak / 1e9
    if setting.on_cpu:
        table.noted("training, plan of a GPU", "not on a CPU", training / 1e9, "GB")
        table.noted("largest phase, plan of a GPU", "not on a CPU", peak, "GB")
        return
    limit = MEMORY * training / 1e9
    table.at_most("training: peak of the trainer's allocator", step[MAX_ALLOCATOR], limit, training / 1e9, "GB")
    table.at_most("peak memory of the fullest GPU", done.gpu_gb, setting.gpu_gb, peak, "GB")
    table.noted("host memory in use", step["perf/cpu_memory_used_gb"], need.host / 1e9, "GB", "all programs together")


def test_seconds(setting, table, planned, model, step, need):
    """Seconds by part beside the plan's, at full length."""
    spent = hours.estimate(shape_of(setting.recipe, model), planned, need, hours.Assumptions(mean_response=1.0))
    generation, update = step["timing_s/gen"], step["timing_s/update_actor"]
    other = step["timing_s/step"] - generation - update
    pairs = ((generation, spent.generation), (update, spent.update), (other, spent.overhead))
    for part, (measured, predicted) in zip(("generation", "update", "other"), pairs, strict=True):
        if setting.on_cpu:
            table.noted(f"seconds, {part}", measured, predicted, "s", "predicted for H100s")
        else:
            table.at_most(f"seconds, {part}", measured, SECONDS * predicted, predicted, "s")
