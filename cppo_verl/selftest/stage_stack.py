"""Stages ``one-*`` and ``all-*``: verl's own trainer with the tiny Qwen3, and its log has to be that of a sane run.

On GPUs verl's defaults: flash attention, bfloat16, NCCL. On the CPU platform float32 and gloo. The reward is the toss
of a coin, so that there is always something to learn. The first-update gap is the divergence of the trainer's policy
from the rollout's before a step's first update: from the second step on it also says whether the rollout engine got the
new weights.
"""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cppo_verl import jsonlines
from cppo_verl.launch import checkpoints, supervise
from cppo_verl.launch.progress import ALARM
from cppo_verl.launch.quoting import quote
from cppo_verl.reporting.logs import read_run
from cppo_verl.selftest import coin
from cppo_verl.selftest.stage import SelftestError, Setting

KILL_AFTER = 2  # step whose checkpoint must be there before the driver is killed
# first-update gap: predicted and at most. In bfloat16 two engines round differently; the alarm is at delta_b = 0.02.
CPU_GAP, CPU_TOPK_GAP, GPU_GAP = (4e-7, 1e-5), (3e-6, 1e-5), (1e-3, 5e-3)
P = "actor/trust_region/"
# as the quickstart sets them: trainer, rollout engine and Ray share few cores
ON_CPU = {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}


def overrides(setting: Setting) -> list[str]:
    """verl's arguments: the quickstart's in miniature, with the stage's preset, ranks and sequence parallelism."""
    sp = int(setting.options.get("sequence_parallel", 1))
    ranks = 1 if setting.options.get("one") else int(setting.room["ranks"]) // sp * sp
    mini = max(4, ranks)  # prompts an update, two updates a step
    given = {
        **yaml.safe_load((Path(__file__).parent / "assets/tiny_run.yaml").read_text(encoding="utf-8")),
        "data.train_files": setting.tiny / "data/train.parquet",
        "data.val_files": setting.tiny / "data/val.parquet",
        "data.train_batch_size": 2 * mini,
        "reward.custom_reward_function.path": Path(coin.__file__),
        "actor_rollout_ref.model.path": setting.tiny / "model",
        "actor_rollout_ref.actor.ppo_mini_batch_size": mini,
        "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": sp,
        "trainer.n_gpus_per_node": ranks,
        "trainer.total_training_steps": steps_of(setting),
        "trainer.save_freq": 1 if setting.options.get("kill") else -1,
        "trainer.experiment_name": setting.stage,
    }
    if not setting.on_cpu:
        given["actor_rollout_ref.rollout.gpu_memory_utilization"] = 0.3
    elif sp > 1:
        given["actor_rollout_ref.model.override_config.attn_implementation"] = "flash_attention_2"
    platform = ["+platform=cpu"] if setting.on_cpu else []
    texts = [f"{key}={quote(value) if isinstance(value, Path) else value}" for key, value in given.items()]
    return [f"+trust_region={setting.options['preset']}", *platform, *texts]


def steps_of(setting: Setting) -> int:
    """Of the stage's run: twice as many where it is killed on the way, so that something is left."""
    return setting.steps * (2 if setting.options.get("kill") else 1)


def start(setting: Setting, fresh: bool = True, kill_at: int | None = None) -> str:
    """Start the stage's run, or resume it, and wait for its end; the driver is killed when the checkpoint of step
    ``kill_at`` is there. What it said. SelftestError: it failed, or came to its end before it could be killed."""
    command = [sys.executable, "-m", "cppo_verl.cli.main", "run", *(["--fresh"] if fresh else []), str(setting.run)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **(ON_CPU if setting.on_cpu else {})}
    output = setting.logs / f"run-{time.time_ns()}.log"
    killed = False
    with output.open("w", encoding="utf-8") as log:
        given = [*command, *overrides(setting)]
        child = subprocess.Popen(given, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        while child.poll() is None:
            time.sleep(0.05)
            if kill_at is not None and not killed and checkpoint_of(setting.run) >= kill_at:
                killed = kill_driver(setting.run)
    said = output.read_text(encoding="utf-8")
    print(said, flush=True)
    if kill_at is not None and child.returncode == 0:
        raise SelftestError("the run came to its end before it could be killed; give more --steps")
    if not killed and child.returncode != 0:
        raise SelftestError(f"the run ended with exit status {child.returncode}")
    return said


def kill_driver(run: Path) -> bool:
    """SIGKILL the trainer's driver; whether there was one."""
    for process in supervise.processes_of(run):
        if "verl.trainer.main_ppo" in supervise.title(process):
            process.kill()
            return True
    return False


def checkpoint_of(run: Path) -> int:
    """The step of the run's newest whole checkpoint, by verl's pointer; 0 without one."""
    return checkpoints.pointed_at(run / "checkpoints") or 0


@pytest.fixture(scope="module")
def started(setting, table):
    """The run, at its end; one that was killed on the way goes on by the same command."""
    kill, run = setting.options.get("kill"), setting.run
    said = start(setting, kill_at=KILL_AFTER if kill else None)
    if kill:
        checkpoint = checkpoint_of(run)
        table.equal("killed driver is named by the launcher", "signal 9" in said, True)
        start(setting, fresh=False)
        newest = max(run.glob("logs/metrics-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        again = [line["step"] for line in jsonlines.read(newest)[0] if line["step"] > checkpoint]
        table.equal("resumed behind step", min(again, default=0) - 1, checkpoint)
    return read_run(run).frame


def test_log(setting, table, started):
    """What verl's file logger has of the run."""
    trained = started[started.index > 0]
    table.equal("steps in the log", listed(trained.index), listed(range(1, steps_of(setting) + 1)))
    learned = trained[trained["trust_region/zero_variance_share"] < 1]
    said = listed(learned.index)
    table.equal("steps with something to learn: two or more", len(learned) >= 2, True, note=said)
    if learned.empty:
        return
    on_topk = setting.options["preset"].endswith("topk")
    predicted, limit = (CPU_TOPK_GAP if on_topk else CPU_GAP) if setting.on_cpu else GPU_GAP
    gaps, norms = learned[P + "first_update/divergence_mean"], learned["actor/grad_norm"]
    table.at_most("first-update gap, first of them", float(gaps.iloc[0]), limit, predicted)
    table.at_most("first-update gap, later: weights exchanged", float(gaps.iloc[1:].max()), limit, predicted)
    table.at_most("masked before any update", float(learned[P + "first_update/masked_share"].max()), 0.01, 0)
    consoles = setting.run.glob("logs/console-*.log")
    alarms = sum(path.read_text(encoding="utf-8", errors="replace").count(ALARM) for path in consoles)
    table.equal("alarms", alarms, 0)
    table.equal("gradient norms finite and above 0", all(0 < norm < math.inf for norm in norms), True)
    table.equal("updates move the policy", bool((learned[P + "divergence_mean"] > 2 * gaps).any()), True)
    if on_topk:
        mass = learned[P + "topk_mass"]
        inside, said = bool(((mass > 0) & (mass <= 1)).all()), f"mean {mass.mean():.5f}"
        table.equal("mass of the top-K and the sampled token in (0, 1]", inside, True, note=said)


def listed(steps) -> str:
    return ", ".join(str(int(step)) for step in steps)
