"""Kills parts of a real run at random moments, fills its disk, starts it again, and counts what is lost.

    python -m benchmarks.faults --trials 20     # CPU stack; about 100 s a trial on two cores; root, for a small disk
    METHOD=cppo_async MODE=colocate_async python -m benchmarks.faults --work runs/async

One run of the quickstart in miniature (save_freq=1) suffers one fault after another. A trial survives if the next start
resumes from the newest checkpoint whose every file loads with torch.load (found here, not by the launcher), and is lost
otherwise. At the end the run goes on for two steps without a fault, and its merged log has to hold every step once.

Faults: SIGKILL of the driver, of a training worker, of vLLM's engine or server; another process that fills the disk of
the checkpoints (a tmpfs). Moments: during a step, while a checkpoint is written, during start-up.
"""

import argparse
import itertools
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from cppo_verl import jsonlines
from cppo_verl.launch import checkpoints, supervise
from cppo_verl.reporting import logs

ROOT = Path(__file__).parent.parent
VICTIMS = {
    "driver": ("verl.trainer.main_ppo",),
    "worker": ("ray::WorkerDict",),
    "vllm": ("VLLM::EngineCore", "ray::vLLMHttpServer"),
}
FAULTS, MOMENTS = (*VICTIMS, "full disk"), ("step", "saving", "start")
RESUMED = re.compile(r"Resuming from \S*global_step_(\d+)|(Training from scratch)")
ACTOR = "actor_rollout_ref.actor"
SMALL = ("data.train_batch_size=4", f"{ACTOR}.ppo_mini_batch_size=2", "actor_rollout_ref.rollout.n=4")
SMALL += ("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=1")


class Run:
    """A run directory, and the launcher that works in it."""

    def __init__(self, work: Path):
        self.work, self.folder = work.resolve(), (work / "faults").resolve()
        self.checkpoints = self.folder / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def start(self, steps: int) -> None:
        values = {**os.environ, "WORK": str(self.work), "RUN": str(self.folder), "STEPS": str(steps)}
        command, output = [ROOT / "run_scripts/quickstart.sh", *SMALL], subprocess.PIPE
        self.launcher = subprocess.Popen(command, env=values, stdout=output, stderr=subprocess.STDOUT, text=True)

    def wait(self) -> str:
        """What the launcher printed; it must end by itself."""
        return self.launcher.communicate(timeout=900)[0]

    def until(self, what: Callable[[], object], tick: float = 0.3) -> None:
        """Wait for ``what()``, as long as the run goes on."""
        while not what():
            if self.launcher.poll() is not None:
                raise RuntimeError(f"the run ended before the fault:\n{self.wait()[-3000:]}")
            time.sleep(tick)

    def last_logged(self) -> int:
        """The last step in any of the run's logs."""
        lines = [line for path in (self.folder / "logs").glob("metrics-*.jsonl") for line in jsonlines.lines(path)]
        return max((line.value["step"] for line in lines if not line.fault), default=0)

    def newest_whole(self) -> int:
        """The newest step of which every file is there and loads; 0 without one."""
        shards = [f"actor/{kind}_world_size_1_rank_0.pt" for kind in checkpoints.KINDS]
        found = [0]
        for step, folder in checkpoints.steps(self.checkpoints).items():
            parts = {folder / checkpoints.SEAL, *(folder / name for name in shards), *folder.rglob("*.pt")}
            queued = (folder / checkpoints.QUEUE).is_dir() or not os.environ.get("MODE")
            found += [step] if queued and all(map(_loads, parts)) else []
        return max(found)

    def victims(self, fault: str) -> list[psutil.Process]:
        names = VICTIMS.get(fault, VICTIMS["worker"])
        return [p for p in supervise.processes_of(self.folder) if any(name in supervise.title(p) for name in names)]

    def resumed(self) -> int | None:
        """The step that the last start resumed from, 0 for the first; None where it did not come so far."""
        console = max((self.folder / "logs").glob("console-*.log")).read_text(errors="replace")
        match = RESUMED.search(console)
        return int(match[1] or 0) if match else None


def _loads(path: Path) -> bool:
    try:
        torch.load(path, weights_only=False)
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return False
    return True


def wait_for_moment(run: Run, fault: str, moment: str, chance: random.Random) -> None:
    if moment == "start":
        run.until(lambda: run.victims(fault))
        time.sleep(chance.uniform(0, 15))
        return
    logged = run.last_logged()
    run.until(lambda: run.last_logged() > logged)
    if moment == "step":
        time.sleep(chance.uniform(0, 4))
    else:
        known = set(run.checkpoints.iterdir())
        run.until(lambda: set(run.checkpoints.iterdir()) - known, tick=0.002)
        time.sleep(chance.uniform(0, 0.08))


def fill_disk(run: Run) -> None:
    """Another user of the disk, who takes what there is until the run has ended, and then gives it back."""
    ballast = run.checkpoints / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        while run.launcher.poll() is None:
            try:
                file.write(bytes(1 << 16))
            except OSError:
                time.sleep(0.001)
    ballast.unlink()


def suffer(run: Run, fault: str, moment: str, chance: random.Random) -> tuple[int, str]:
    """Inject the fault into the start that is under way, and wait until the launcher has given up.

    Returns:
        The newest checkpoint on the disk then, and a line about what happened.
    """
    wait_for_moment(run, fault, moment, chance)
    began = time.monotonic()
    if fault == "full disk":
        filling = threading.Thread(target=fill_disk, args=[run])
        filling.start()
        output = run.wait()
        filling.join()
    else:
        chance.choice(run.victims(fault)).kill()
        output = run.wait()
    seconds = time.monotonic() - began
    said = [line for line in output.splitlines() if line.startswith("cppo-verl run:")]
    said = said or [f"(launcher ended with {run.launcher.returncode})"]
    left = list(supervise.processes_of(run.folder))
    assert not left, f"processes are left: {left}"
    whole = run.newest_whole()
    return whole, f"{fault}, {moment}: {seconds:.1f} s to the end, step {whole} is whole. {said[-1]}"


def main() -> None:
    """Run the trials and print them; status 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--work", type=Path, default=ROOT / "runs", help="data, model and run go here")
    parser.add_argument("--seed", type=int, help="of the moments; drawn when left out")
    arguments = parser.parse_args()
    run, chance = Run(arguments.work), random.Random(arguments.seed)
    if not os.path.ismount(run.checkpoints):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "faults", str(run.checkpoints)], check=True)
    plan = itertools.cycle((fault, moment) for moment in MOMENTS for fault in FAULTS)
    found: list[bool] = []  # of each trial, whether anything was lost
    pending: list[tuple[int, str]] = []  # trials until a later start has shown what was resumed
    for number, (fault, moment) in zip(range(arguments.trials + 1), plan, strict=False):
        last = number == arguments.trials
        run.start(steps=run.last_logged() + 2 if last else 100_000)
        if last:
            output = run.wait()
            assert run.launcher.returncode == 0, output[-3000:]
        else:
            suffered = suffer(run, fault, moment, chance)
        if (resumed := run.resumed()) is not None:
            for whole, line in pending:
                found.append(resumed != whole)
                print("LOST" if resumed != whole else "survived", f"resumed from {resumed};", line, flush=True)
            pending.clear()
        if not last:
            pending.append(suffered)
    print(f"{len(found)} trials, {sum(found)} lost")
    frame = logs.read_run(run.folder).frame  # a row a step
    missing = sorted(set(range(1, int(frame.index.max()) + 1)) - set(frame["critic/score/mean"].dropna().index))
    print(f"merged log: {f'steps {missing} are missing' if missing else 'every step once'}")
    raise SystemExit(1 if missing or any(found) else 0)


if __name__ == "__main__":
    main()
