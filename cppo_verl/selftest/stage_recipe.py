"""Stage ``recipe``: one step of a recipe with prompts and responses as long as it allows, beside what its plan says.

The recipe is its script's own command line; only data, reward and length of the run are the stage's: prompts that fill
their room, a reward by the toss of a coin, no early end of a response, no response left out of the update.
"""

import bisect
from pathlib import Path

import pandas
from transformers import AutoTokenizer

from cppo_verl.launch.quoting import quote
from cppo_verl.reporting.logs import read_run
from cppo_verl.selftest import coin, watched_run
from cppo_verl.selftest.setting import SelftestError, Setting
from recipe import hours, memory, settings
from recipe.shapes import shape_of

MEMORY, SECONDS = 1.15, 3.0  # a plan's memory errs upward; its seconds are good for an order of magnitude
MAX_ALLOCATOR = "perf/max_memory_reserved_gb"
OWN = {
    "reward.custom_reward_function.path": Path(coin.__file__),
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
    given = {"data.train_files": prompts_of(setting, "train"), **OWN}
    given |= {"data.val_files": f"[{quote(prompts_of(setting, 'val'))}]"}
    if setting.on_cpu and not setting.model:
        given["actor_rollout_ref.model.path"] = setting.tiny / "model"
    platform = ["+platform=cpu"] if setting.on_cpu else []
    return [*setting.overrides, *platform, *watched_run.as_overrides(given)]


def prompts_of(setting: Setting, split: str) -> Path:
    """File of the prompts of ``train`` or ``val``."""
    return setting.run.with_name(f"{setting.stage}-{split}.parquet")


def write_prompts(setting: Setting, model: str, count: int, tokens: int) -> None:
    """Prompts that leave no room, or little, in verl's columns: ``count`` to train on, and one for validation.
    SelftestError: the model's chat template alone is longer than ``tokens``."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def chat(index: int, words: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": " ".join([f"{index:04}", *(str(i % 10) for i in range(words))])}]

    def length(words: int) -> int:
        prompt = tokenizer.apply_chat_template(chat(0, words), add_generation_prompt=True, tokenize=False)
        return len(tokenizer.encode(prompt, add_special_tokens=False))

    if length(0) > tokens:
        raise SelftestError(f"a prompt of {tokens} tokens has no room for the model's chat template of {length(0)}")
    words = bisect.bisect_right(range(tokens + 1), tokens, key=length) - 1
    truth = {"reward_model": {"style": "rule", "ground_truth": "0"}, "data_source": "selftest"}
    rows = pandas.DataFrame([{"prompt": chat(index, words), **truth} for index in range(count + 1)])
    setting.run.parent.mkdir(parents=True, exist_ok=True)
    rows[:-1].to_parquet(prompts_of(setting, "train"))
    rows[-1:].to_parquet(prompts_of(setting, "val"))


def test_step(setting, table):
    overrides = command(setting)
    planned, model = settings.read(overrides), settings.parse(overrides)["actor_rollout_ref.model.path"]
    write_prompts(setting, model, planned.prompts, planned.prompt_tokens)
    watched_run.start(setting, overrides)
    judge(setting, table, planned, model, read_run(setting.run).frame.loc[1].to_dict())


def judge(setting: Setting, table, planned: settings.Settings, model: str, step: dict[str, float]) -> None:
    """Whether the step was as long as it can be, and an update; on GPUs its memory and seconds beside the plan's."""
    table.equal("response tokens, shortest", step["response_length/min"], float(planned.response_tokens))
    room, limit = planned.prompt_tokens - step["prompt_length/min"], 0.02 * planned.prompt_tokens + 2
    table.at_most("room left in the shortest prompt", room, limit, unit="tokens")
    floor = float(next(x.partition("=")[2] for x in [*setting.overrides, "delta_b=0.02"] if "delta_b=" in x))
    said = "delta_b: above it the trust region is spent before any update"
    table.at_most("first-update gap", step["actor/trust_region/first_update/divergence_mean"], floor, note=said)
    table.equal("gradient norm above 0", step["actor/grad_norm"] > 0, True)
    table.equal("alarms", watched_run.alarms(setting.run), 0)
    if setting.on_cpu:
        return
    shape = shape_of(setting.recipe, model)
    need = memory.estimate(shape, planned, 1e9 * setting.room["GB a GPU"])
    spent = hours.estimate(shape, planned, need, hours.Assumptions(mean_response=1.0))
    training = (sum(need.training.values()) - need.training["fixed"]) / 1e9
    generation, update = step["timing_s/gen"], step["timing_s/update_actor"]
    for what, measured, predicted, factor, unit in (
        ("training: peak of the trainer's allocator", step[MAX_ALLOCATOR], training, MEMORY, "GB"),
        ("seconds, generation", generation, spent.generation, SECONDS, "s"),
        ("seconds, update", update, spent.update, SECONDS, "s"),
        ("seconds, other", step["timing_s/step"] - generation - update, spent.overhead, SECONDS, "s"),
    ):
        table.at_most(what, measured, factor * predicted, predicted, unit=unit)
