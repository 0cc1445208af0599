"""Stage ``recipe``: one step of a recipe with prompts and responses as long as it allows, beside what its plan says.

The recipe is its script's own command line; only data, reward and length of the run are the stage's: prompts that fill
their room, a reward by the toss of a coin, no early end of a response, no response left out of the update.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from cppo_verl.reporting import metrics as names
from cppo_verl.selftest import coin, watched_run
from cppo_verl.selftest.machine import ROOT, Machine
from cppo_verl.selftest.setting import Setting, StageError
from cppo_verl.selftest.table import Row, at_most, equal, noted

SCRIPTS = ROOT / "run_scripts"
# On the CPU the recipe keeps its method and flags, its lengths and batches are a toy's; a variable that is set stays.
MINIATURE = {
    "PROMPTS": "4",
    "MINIBATCH": "2",
    "N": "4",
    "PROMPT_TOKENS": "48",
    "RESPONSE_TOKENS": "64",
    "NGPUS_PER_NODE": "1",
    "SP": "1",
    "TP": "1",
    "TOKENS_PER_GPU": "2048",
    "GPU_SHARE": "0.05",
}
MEMORY, SECONDS = 1.15, 3.0  # a plan's memory errs upward; its seconds are good for an order of magnitude
MAX_ALLOCATOR = "perf/max_memory_reserved_gb"


def overrides(name: str, model: str, here: Machine) -> tuple[str, ...]:
    """What run_scripts/NAME.sh gives verl in this environment, before the stage's own changes.

    Raises:
        StageError: no such script, or the script refuses.
    """
    script = SCRIPTS / f"{name}.sh"
    if not script.is_file():
        there = ", ".join(sorted(path.stem for path in SCRIPTS.glob("qwen3_*.sh"))) or "no scripts beside this copy"
        raise StageError(
            f"--recipe {name}: there is no {script.name} in run_scripts ({there}); start from the repository"
        )
    defaults = MINIATURE if here.device == "cpu" else {"NGPUS_PER_NODE": str(max(here.ranks, 1))}
    environment = {**defaults, **os.environ, "PYTHON": sys.executable, **({"MODEL_PATH": model} if model else {})}
    done = subprocess.run(["bash", str(script), "overrides"], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise StageError(f"--recipe {name}: {(done.stderr or done.stdout).strip()}")
    return tuple(done.stdout.splitlines())


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    from recipe import hours, memory, settings
    from recipe.shapes import shape_of

    command = [*setting.overrides, *own_overrides(setting)]
    s = settings.read(command)
    model = settings.parse(command)["actor_rollout_ref.model.path"]
    write_prompts(setting, model, s.prompts, s.prompt_tokens)
    done = watched_run.start(setting, command, fresh=True)
    shape = shape_of(setting.recipe, model)
    need = memory.estimate(shape, s, 1e9 * (setting.gpu_gb or 80))
    spent = hours.estimate(shape, s, need, hours.Assumptions(mean_response=1.0))
    step = logged(setting.run)
    yield from lengths(step, s)
    yield from sanity(setting, step)
    yield from memory_rows(setting, step, need, done.usage)
    yield from time_rows(setting, step, spent)


def own_overrides(setting: Setting) -> list[str]:
    """Data, reward and length of the run."""
    given = {
        "data.train_files": prompts_of(setting, "train"),
        "data.val_files": f"[{prompts_of(setting, 'val')}]",
        "reward.custom_reward_function.path": coin.__file__,
        "actor_rollout_ref.rollout.ignore_eos": "true",
        "trainer.v1.trust_region.skip_zero_variance": "false",
        "trainer.total_training_steps": 1,
        "trainer.val_before_train": "false",
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.logger": "[console,file]",
    }
    model = []
    if setting.on_cpu:
        model = ["+platform=cpu", *([] if setting.model else [f"actor_rollout_ref.model.path={setting.tiny_model}"])]
    return [*model, *(f"{key}={value}" for key, value in given.items())]


def prompts_of(setting: Setting, split: str) -> Path:
    """File of the prompts of ``train`` or ``val``."""
    return setting.run.with_name(f"{setting.stage}-{split}.parquet")


def write_prompts(setting: Setting, model: str, count: int, tokens: int) -> None:
    """Prompts that leave no room, or one token, in verl's columns: ``count`` to train on, and one for validation."""
    import pandas
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    for index in range(count + 1):
        content = [{"role": "user", "content": filling(tokenizer, index, tokens)}]
        rows.append(
            {"data_source": "selftest", "prompt": content, "reward_model": {"style": "rule", "ground_truth": "0"}}
        )
    for split, part in (("train", rows[:-1]), ("val", rows[-1:])):
        path = prompts_of(setting, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pandas.DataFrame(part).to_parquet(path)


def filling(tokenizer, index: int, tokens: int) -> str:
    """The longest text of its kind that makes a prompt of at most ``tokens`` tokens; another one for every index.

    Raises:
        StageError: the chat template alone is longer.
    """

    def text(words: int) -> str:
        return " ".join([str(index), *(str(i % 10) for i in range(words))])

    def length(words: int) -> int:
        chat = [{"role": "user", "content": text(words)}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return len(tokenizer.encode(prompt, add_special_tokens=False))

    low, high = 0, tokens
    if length(low) > tokens:
        raise StageError(f"a prompt of {tokens} tokens has no room for the model's chat template of {length(low)}")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(middle) <= tokens else (low, middle - 1)
    return text(low)


def logged(run: Path) -> Mapping[str, float]:
    """The metrics of the run's only step."""
    from cppo_verl.reporting.logs import read_run

    frame = read_run(run).frame
    return frame.loc[1].dropna().to_dict()


def lengths(step: Mapping[str, float], s) -> Iterator[Row]:
    """Whether the step was as long as it can be."""
    yield equal("response tokens, shortest", step.get("response_length/min"), float(s.response_tokens))
    shortest = step.get("prompt_length/min", 0.0)
    yield at_most(
        "room left in the shortest prompt", s.prompt_tokens - shortest, 0.02 * s.prompt_tokens + 2, unit="tokens"
    )


def sanity(setting: Setting, step: Mapping[str, float]) -> Iterator[Row]:
    """Whether the update was one."""
    floor = float(next(x.partition("=")[2] for x in [*setting.overrides, "delta_b=0.02"] if "delta_b=" in x))
    gap = step.get(names.FIRST_UPDATE, float("nan"))
    yield at_most("first-update gap", gap, floor, note="delta_b: above it the trust region is spent before any update")
    yield equal("gradient norm above 0", step.get("actor/grad_norm", 0.0) > 0, True)
    yield equal("alarms", watched_run.alarms(setting.run), 0)


def memory_rows(setting: Setting, step: Mapping[str, float], need, usage: watched_run.Usage) -> Iterator[Row]:
    """Peaks beside the plan's; on the CPU only to look at, for the plan is of GPUs."""
    fixed = need.training["fixed"]
    training = (sum(need.training.values()) - fixed) / 1e9
    peak = need.peak / 1e9
    if setting.on_cpu:
        yield noted("training, plan of a GPU", f"{usage.host:.1f} GB, all processes on the host", training, "GB")
        yield noted("largest phase, plan of a GPU", "not on a CPU", peak, "GB")
        return
    yield at_most("training: peak of the trainer's allocator", step[MAX_ALLOCATOR], MEMORY * training, training, "GB")
    yield at_most("peak memory of the fullest GPU", usage.gpu, setting.gpu_gb, peak, "GB")
    yield noted("host memory of all processes", usage.host, need.host / 1e9, "GB")


def time_rows(setting: Setting, step: Mapping[str, float], spent) -> Iterator[Row]:
    """Seconds by part beside the plan's, at full length."""
    generation, update = step[names.TIME_GEN], step[names.TIME_UPDATE]
    parts = {
        "generation": (generation, spent.generation),
        "update": (update, spent.update),
        "other": (step[names.TIME_STEP] - generation - update, spent.overhead),
    }
    for part, (measured, predicted) in parts.items():
        if setting.on_cpu:
            yield noted(f"seconds, {part}", measured, predicted, "s", "predicted for H100s")
        else:
            yield at_most(f"seconds, {part}", measured, SECONDS * predicted, predicted, "s")
