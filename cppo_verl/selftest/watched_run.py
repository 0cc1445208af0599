"""Starts ``cppo-verl run`` for a stage, and reads what it logged."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from cppo_verl.launch import checkpoints, supervise
from cppo_verl.launch.quoting import quote
from cppo_verl.selftest.setting import SelftestError, Setting

ALARM = "TRUST REGION ALARM"  # as cppo_verl.integration.alarms marks them
# as the quickstart sets them: trainer, rollout engine and Ray share few cores
ON_CPU = {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}


def start(setting: Setting, overrides: Sequence[str], fresh: bool = True, kill_at: int | None = None) -> str:
    """Start the stage's run, or resume it, and wait for its end; the driver is killed when the checkpoint of step
    ``kill_at`` is there. What it said. SelftestError: it failed, or came to its end before it could be killed."""
    command = [sys.executable, "-m", "cppo_verl.cli.main", "run", *(["--fresh"] if fresh else []), str(setting.run)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **(ON_CPU if setting.on_cpu else {})}
    output = setting.logs / f"run-{time.time_ns()}.log"
    killed = False
    with output.open("w", encoding="utf-8") as log:
        given = [*command, *overrides]
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
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
            return True
    return False


def checkpoint_of(run: Path) -> int:
    """The step of the run's newest whole checkpoint, by verl's pointer; 0 without one."""
    return checkpoints.pointed_at(run / "checkpoints") or 0


def alarms(run: Path) -> int:
    """Alarms in the console logs of all starts."""
    logs = (path.read_text(encoding="utf-8", errors="replace") for path in run.glob("logs/console-*.log"))
    return sum(text.count(ALARM) for text in logs)


def as_overrides(given: Mapping[str, object]) -> list[str]:
    """Key and value as Hydra takes them; paths quoted."""
    texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in given.items()}
    return [f"{key}={quote(value) if isinstance(value, Path) else value}" for key, value in texts.items()]
