"""Starts ``cppo-verl run`` for a stage, watches its memory, and reads what it logged."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cppo_verl.launch import checkpoints, supervise
from cppo_verl.selftest import gpus
from cppo_verl.selftest.setting import Setting, StageError

ALARM = "TRUST REGION ALARM"  # as cppo_verl.integration.alarms marks them
GPU_EVERY, HOST_EVERY = 1.0, 5.0  # seconds between two looks at the memory of GPUs, and of the host
# as the quickstart sets them: trainer, rollout engine and Ray share few cores
ON_CPU = {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
ALWAYS = {"TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Usage:
    """Peaks of memory in GB: of all processes of a run, and of the fullest GPU (0 without one)."""

    host: float = 0.0
    gpu: float = 0.0
    looked: dict[str, float] = field(default_factory=dict, repr=False)

    def look(self, run: Path, on_cpu: bool) -> None:
        """Take the peaks up to now; only now and then, for looking costs time."""
        if not on_cpu and self._due("gpu", GPU_EVERY):
            self.gpu = max([self.gpu, *gpus.used()])
        if self._due("host", HOST_EVERY):
            self.host = max(self.host, sum(map(_share, supervise.processes_of(run))) / 1e9)

    def _due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        due = now - self.looked.get(what, -every) >= every
        if due:
            self.looked[what] = now
        return due


@dataclass(frozen=True)
class Start:
    """How a start of a run went: seconds to its end, its exit status, what it said, the peaks of memory."""

    seconds: float
    status: int
    output: str
    usage: Usage


def start(setting: Setting, overrides: Sequence[str], fresh: bool, until: Callable[[], bool] = lambda: False) -> Start:
    """Start the stage's run, or resume it, and wait for its end; when ``until`` says so, its driver is killed.

    Raises:
        StageError: it ended before ``until`` said so.
    """
    run = setting.run.resolve()
    command = [sys.executable, "-m", "cppo_verl.cli.main", "run", *(["--fresh"] if fresh else []), str(run), *overrides]
    environment = {**os.environ, **ALWAYS, **(ON_CPU if setting.on_cpu else {})}
    output = setting.out / "stages" / setting.stage / f"run-{time.time_ns()}.log"
    began, usage, killed = time.monotonic(), Usage(), False
    with output.open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        looking = threading.Thread(target=_look_until_it_ends, args=(usage, child, run, setting.on_cpu), daemon=True)
        looking.start()  # apart: on a busy machine a look takes seconds, and the moment to kill would pass
        while child.poll() is None:
            time.sleep(0.05)
            if not killed and until():
                killed = kill_driver(run)
        looking.join()
    said = output.read_text(encoding="utf-8")
    print(said, flush=True)
    done = Start(time.monotonic() - began, child.returncode, said, usage)
    if not killed and done.status != 0:
        raise StageError(f"the run ended with exit status {done.status}:\n{said[-3000:]}")
    return done


def _look_until_it_ends(usage: Usage, child: subprocess.Popen, run: Path, on_cpu: bool) -> None:
    while child.returncode is None:  # set by the other thread's poll
        usage.look(run, on_cpu)
        time.sleep(0.2)


def kill_driver(run: Path) -> bool:
    """SIGKILL the trainer's driver; whether there was one."""
    for process in supervise.processes_of(run):
        try:
            if "verl.trainer.main_ppo" in process.cmdline():
                os.kill(process.pid, signal.SIGKILL)
                return True
        except (psutil.Error, ProcessLookupError):
            continue
    return False


def checkpoint_of(run: Path) -> int:
    """The step of the run's newest whole checkpoint, by verl's pointer; 0 without one."""
    return checkpoints.pointed_at(run / "checkpoints") or 0


def alarms(run: Path) -> int:
    """Alarms in the console logs of all starts."""
    return sum(
        ALARM in line
        for path in run.glob("logs/console-*.log")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )


def _share(process: psutil.Process) -> float:
    """Bytes of a process, what it shares with others divided among them."""
    try:
        return process.memory_full_info().pss
    except (psutil.Error, AttributeError):
        return 0.0
