"""Stages ``one-*`` and ``all-*``: verl's own trainer with the tiny Qwen3, and its log has to be that of a sane run.

Packed sequences throughout; on GPUs verl's defaults: flash attention, bfloat16, NCCL. On the CPU platform float32 and
gloo. The reward is the toss of a coin, so that there is always something to learn, and the rate is high, so that old
weights would show. The first-update gap is the divergence of the trainer's policy from the rollout's before a step's
first update: from the second step on it also says whether the rollout engine got the new weights.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from cppo_verl.reporting import metrics as names
from cppo_verl.selftest import coin, watched_run
from cppo_verl.selftest.setting import Setting, StageError
from cppo_verl.selftest.table import Row, at_most, equal, noted

K = 20
KILL_AFTER = 2  # step whose checkpoint must be there before the driver is killed
# first-update gap: predicted and at most. In bfloat16 two engines round differently; the alarm is at delta_b = 0.02.
GAPS = {("cpu", "binary"): (4e-7, 1e-5), ("cpu", "topk"): (3e-6, 1e-5), ("cuda", "any"): (1e-3, 5e-3)}
FIRST_MASKED = "actor/trust_region/first_update/masked_share"


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    command = overrides(setting)
    if setting.options.get("kill"):
        yield from killed_and_resumed(setting, command)
    else:
        yield from usage_rows(watched_run.start(setting, command, fresh=True))
    yield from log_rows(setting)


def overrides(setting: Setting) -> list[str]:
    """verl's arguments: the quickstart's in miniature, with the stage's preset, ranks and sequence parallelism."""
    ranks, sp = ranks_of(setting), int(setting.options.get("sequence_parallel", 1))
    mini = max(4, ranks)  # prompts an update, two updates a step
    given = {
        "data.train_files": setting.data / "train.parquet",
        "data.val_files": setting.data / "val.parquet",
        "data.train_batch_size": 2 * mini,
        "data.max_prompt_length": 48,
        "data.max_response_length": 64,
        "data.filter_overlong_prompts": "false",
        "data.seed": 0,
        "reward.custom_reward_function.path": coin.__file__,
        "reward.custom_reward_function.name": "compute_score",
        "actor_rollout_ref.model.path": setting.tiny_model,
        "actor_rollout_ref.model.use_remove_padding": "true",
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.actor.optim.lr": 1e-3,
        "actor_rollout_ref.actor.ppo_mini_batch_size": mini,
        "actor_rollout_ref.actor.use_dynamic_bsz": "true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 2048,
        "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": sp,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.rollout.max_model_len": 128,
        "actor_rollout_ref.rollout.seed": 0,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": "true",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": 2048,
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": ranks,
        "trainer.total_training_steps": steps_of(setting),
        "trainer.total_epochs": 1000,
        "trainer.val_before_train": "false",
        "trainer.test_freq": -1,
        "trainer.save_freq": 1 if setting.options.get("kill") else -1,
        "trainer.max_actor_ckpt_to_keep": 2,
        "trainer.logger": "[console,file]",
        "trainer.project_name": "selftest",
        "trainer.experiment_name": setting.stage,
    }
    if not setting.on_cpu:
        given["actor_rollout_ref.rollout.gpu_memory_utilization"] = 0.3
    elif sp > 1:
        given["actor_rollout_ref.model.override_config.attn_implementation"] = "flash_attention_2"
    head = [f"+trust_region={setting.options['preset']}", *(["+platform=cpu"] if setting.on_cpu else [])]
    return [*head, *(f"{key}={value}" for key, value in given.items())]


def ranks_of(setting: Setting) -> int:
    """Ranks of the stage; with sequence parallelism as many as divide."""
    ranks = 1 if setting.options.get("one") else setting.ranks
    return ranks - ranks % int(setting.options.get("sequence_parallel", 1))


def steps_of(setting: Setting) -> int:
    """Steps of the stage's run: twice as many where it is killed on the way, so that something is left."""
    return setting.steps * (2 if setting.options.get("kill") else 1)


def killed_and_resumed(setting: Setting, command: list[str]) -> Iterator[Row]:
    """SIGKILL of the driver after a checkpoint; the same command goes on from it."""
    run = setting.run.resolve()
    first = watched_run.start(setting, command, True, lambda: watched_run.checkpoint_of(run) >= KILL_AFTER)
    checkpoint = watched_run.checkpoint_of(run)
    if first.status == 0 or checkpoint >= steps_of(setting):
        raise StageError("the run came to its end before it could be killed; give more --steps")
    yield equal("killed driver is named by the launcher", "signal 9" in first.output, True)
    yield from usage_rows(first)
    second = watched_run.start(setting, command, fresh=False)
    again = [step for step in steps_of_last_start(run) if step > checkpoint]
    yield equal("resumed behind step", min(again, default=0) - 1, checkpoint)
    yield noted("seconds of the resumed start", second.seconds, unit="s")


def usage_rows(done: watched_run.Start) -> Iterator[Row]:
    """Time and memory of a start."""
    yield noted("seconds of the start and its steps", done.seconds, unit="s")
    yield noted("peak memory of all processes", done.usage.host, unit="GB")
    if done.usage.gpu:
        yield noted("peak memory of a GPU", done.usage.gpu, unit="GB")


def log_rows(setting: Setting) -> Iterator[Row]:
    """What verl's file logger has of the run."""
    from cppo_verl.reporting.logs import read_run

    run = setting.run.resolve()
    frame = read_run(run).frame
    trained = frame[frame.index > 0]
    wanted = list(range(1, steps_of(setting) + 1))
    yield equal("steps in the log", _listed(trained.index), _listed(wanted))
    predicted, limit = gap_limits(setting)
    learned = trained[trained[names.ZERO_VARIANCE] < 1]
    yield equal("steps with something to learn: two or more", len(learned) >= 2, True, note=_listed(learned.index))
    if learned.empty:
        return
    gaps = learned[names.FIRST_UPDATE]
    yield at_most("first-update gap, first of them", float(gaps.iloc[0]), limit, predicted)
    yield at_most("first-update gap, later: weights exchanged", float(gaps.iloc[1:].max()), limit, predicted)
    yield at_most("masked before any update", float(learned[FIRST_MASKED].max()), 0.01, 0)
    yield equal("alarms", watched_run.alarms(run), 0)
    norms = learned[names.GRAD_NORM]
    yield equal("gradient norms finite and above 0", bool((norms.map(math.isfinite) & (norms > 0)).all()), True)
    moved = learned[names.DIVERGENCE_MEAN] > 2 * gaps
    yield equal("updates move the policy", bool(moved.any()), True)
    if setting.options["preset"].endswith("topk"):
        mass = learned["actor/trust_region/topk_mass"]
        inside = bool(((mass > 0) & (mass <= 1)).all())
        yield equal("mass of the top-K and the sampled token in (0, 1]", inside, True, note=f"mean {mass.mean():.5f}")
    for label, name in (("a step", names.TIME_STEP), ("generation", names.TIME_GEN), ("update", names.TIME_UPDATE)):
        if name in trained:
            yield noted(f"seconds of {label}, median", float(trained[name].median()), unit="s")


def gap_limits(setting: Setting) -> tuple[float, float]:
    """Predicted and largest first-update gap."""
    if not setting.on_cpu:
        return GAPS["cuda", "any"]
    return GAPS["cpu", "topk" if setting.options["preset"].endswith("topk") else "binary"]


def steps_of_last_start(run: Path) -> list[int]:
    """Steps that the run's last start logged."""
    from cppo_verl.reporting.logs import read_run

    newest = max(run.glob("logs/metrics-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return list(read_run(newest).frame.index)


def _listed(steps) -> str:
    return ", ".join(str(int(step)) for step in steps)
