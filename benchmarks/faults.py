"""Kills parts of a real run at random moments, fills its disk, starts it again, and counts what is lost.

    python -m benchmarks.faults --trials 20                  # CPU stack; about 100 s a trial on two cores
    python -m benchmarks.faults --trials 4 --work runs       # adds to the same run and to its CSV

One run of the quickstart in miniature (save_freq=1) suffers one fault after another. A trial survives if the next start
resumes from the newest checkpoint whose every file loads with torch.load (found here, not by the launcher), and is lost
otherwise. At the end the run goes on for two steps without a fault, and its merged log has to hold every step once.

Faults: SIGKILL of the driver, of a training worker, of vLLM's engine or server; another process that fills the disk of
the checkpoints (a tmpfs: needs root). Moments: during start-up, during a step, while a checkpoint is written.
"""

import argparse
import csv
import dataclasses
import itertools
import os
import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from cppo_verl.launch import supervise
from cppo_verl.reporting import logs

ROOT = Path(__file__).parent.parent
VICTIMS = {
    "driver": ("verl.trainer.main_ppo",),
    "worker": ("ray::WorkerDict",),
    "vllm": ("VLLM::EngineCore", "ray::vLLMHttpServer"),
}
FAULTS = (*VICTIMS, "full disk")
MOMENTS = ("step", "saving", "start")
DISK = "256m"
RESUMED = re.compile(r"Resuming from \S*global_step_(\d+)|(Training from scratch)")
OVERRIDES = (
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=1",
)


@dataclass
class Trial:
    """One fault; ``whole``: the newest checkpoint on the disk after it (0: none), ``resumed`` the one taken."""

    fault: str
    moment: str
    victim: str = ""
    last_logged: int = 0
    whole: int = 0
    resumed: int = -1
    seconds_to_end: float = 0.0
    said: str = ""

    @property
    def survived(self) -> bool:
        return self.resumed == self.whole


class Run:
    """A run directory, and the launcher that works in it."""

    def __init__(self, work: Path):
        self.work, self.folder = work.resolve(), (work / "faults").resolve()
        self.checkpoints = self.folder / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.launcher: subprocess.Popen[str] | None = None

    def start(self, steps: int) -> None:
        values = {"WORK": self.work, "RUN": self.folder, "STEPS": steps}
        self.launcher = subprocess.Popen(
            [ROOT / "run_scripts/quickstart.sh", *OVERRIDES],
            env={**os.environ, **{name: str(value) for name, value in values.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self) -> str:
        """What the launcher printed; it must end by itself."""
        assert self.launcher is not None
        return self.launcher.communicate(timeout=900)[0]

    def ended(self) -> bool:
        return self.launcher is None or self.launcher.poll() is not None

    def consoles(self) -> list[Path]:
        return sorted((self.folder / "logs").glob("console-*.log"))

    def last_logged(self) -> int:
        """The last step in any of the run's logs."""
        found = [0]
        for path in (self.folder / "logs").glob("metrics-*.jsonl"):
            found += map(int, re.findall(rb'^\{"step":(\d+),', path.read_bytes(), re.MULTILINE))
        return max(found)

    def newest_whole(self) -> int:
        """The newest step of which every file is there and loads; 0 without one."""
        folders = sorted(self.checkpoints.glob("global_step_*"), key=lambda path: int(path.name[12:]), reverse=True)
        parts = {folder: {p.relative_to(folder): p for p in folder.rglob("*.pt")} for folder in folders}
        wanted = {"data.pt", *(f"actor/{kind}_world_size_1_rank_0.pt" for kind in ("model", "optim", "extra_state"))}
        for folder in folders:
            if {str(name) for name in parts[folder]} >= wanted and all(map(_loads, parts[folder].values())):
                return int(folder.name[12:])
        return 0


def _loads(path: Path) -> bool:
    try:
        torch.load(path, weights_only=False)
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return False
    return True


def until(what: Callable[[], object], run: Run, tick: float = 0.3, seconds: float = 900.0) -> None:
    """Wait for ``what()``, or for the end of the launcher."""
    deadline = time.monotonic() + seconds
    while not what() and not run.ended() and time.monotonic() < deadline:
        time.sleep(tick)


def wait_for_moment(run: Run, trial: Trial, chance: random.Random) -> None:
    if trial.moment == "start":
        until(lambda: victims(run, VICTIMS.get(trial.fault, VICTIMS["worker"])), run)
        time.sleep(chance.uniform(0, 15))
    else:
        logged = run.last_logged()
        until(lambda: run.last_logged() > logged, run)
    if trial.moment == "step":
        time.sleep(chance.uniform(0, 4))
    elif trial.moment == "saving":
        known = set(run.checkpoints.iterdir())
        until(lambda: set(run.checkpoints.iterdir()) - known, run, tick=0.002)
        time.sleep(chance.uniform(0, 0.08))
    if run.ended():
        raise RuntimeError(f"the run ended before the fault:\n{run.wait()[-3000:]}")


def victims(run: Run, names: tuple[str, ...]) -> list[tuple[psutil.Process, str]]:
    """Processes of the run whose command line has one of ``names``, with that name."""
    found = [(p, next((n for n in names if n in _title(p)), "")) for p in supervise.processes_of(run.folder)]
    return [(process, name) for process, name in found if name]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class FullDisk:
    """Another user of the disk, who takes what there is until the run has ended, and then gives it back."""

    def __init__(self, run: Run):
        self.run, self.ballast = run, run.checkpoints / ".ballast"
        self.thread = threading.Thread(target=self._fill)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_) -> None:
        self.thread.join()
        self.ballast.unlink()

    def _fill(self) -> None:
        with self.ballast.open("wb", buffering=0) as file:
            block = bytes(1 << 16)
            while not self.run.ended():
                try:
                    file.write(block)
                except OSError:
                    time.sleep(0.001)


def suffer(run: Run, trial: Trial, chance: random.Random) -> None:
    """Inject the fault into the start that is under way, and wait until the launcher has given up."""
    wait_for_moment(run, trial, chance)
    began = time.monotonic()
    if trial.fault == "full disk":
        with FullDisk(run):
            output = run.wait()
        trial.victim = "tmpfs"
    else:
        process, trial.victim = chance.choice(victims(run, VICTIMS[trial.fault]))
        process.kill()
        output = run.wait()
    trial.seconds_to_end = round(time.monotonic() - began, 1)
    said = [line for line in output.splitlines() if line.startswith("cppo-verl run:")]
    trial.said = said[-1] if said else f"(launcher ended with {run.launcher and run.launcher.returncode})"
    left = list(supervise.processes_of(run.folder))
    assert not left, f"processes are left: {left}"
    trial.last_logged, trial.whole = run.last_logged(), run.newest_whole()


def settle(run: Run, pending: list[Trial]) -> list[Trial]:
    """Trials whose outcome the latest start has shown, by the checkpoint that verl says it resumed from."""
    match = RESUMED.search(run.consoles()[-1].read_text(errors="replace"))
    if not match:
        return []
    for trial in pending:
        trial.resumed = int(match[1] or 0)
    settled, pending[:] = list(pending), []
    return settled


def play(run: Run, plan: list[tuple[str, str]], chance: random.Random) -> Iterator[Trial]:
    """Trials as their outcome becomes known; afterwards the run has ended well."""
    pending: list[Trial] = []
    for fault, moment in plan:
        trial = Trial(fault, moment)
        run.start(steps=100_000)
        suffer(run, trial, chance)
        yield from settle(run, pending)
        pending.append(trial)
    run.start(steps=run.last_logged() + 2)
    output = run.wait()
    assert run.launcher is not None
    assert run.launcher.returncode == 0, output[-3000:]
    yield from settle(run, pending)


def gaps(run: Run) -> str:
    """What is wrong with the steps of the merged log; empty when each is there once, with its reward."""
    frame = logs.read_run(run.folder).frame
    expected, steps = list(range(1, int(frame.index.max()) + 1)), [step for step in frame.index if step > 0]
    missing = sorted(set(expected) - set(frame["critic/score/mean"].dropna().index))
    return f"steps {missing} are missing" if missing else "" if steps == expected else "steps are out of order"


def mount(folder: Path) -> None:
    if not os.path.ismount(folder):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "cppo-verl-faults", str(folder)], check=True)


def table(trials: list[dict[str, str]]) -> str:
    """Fault, trials, survived, lost, as a table in Markdown."""
    counts, survived = Counter(t["fault"] for t in trials), Counter()
    survived.update(t["fault"] for t in trials if t["survived"] == "True")
    rows = [(fault, counts[fault], survived[fault], counts[fault] - survived[fault]) for fault in FAULTS]
    rows.append(("all", sum(counts.values()), sum(survived.values()), counts.total() - survived.total()))
    lines = ["| fault | trials | survived | lost |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def append(path: Path, trial: Trial) -> None:
    row = {**dataclasses.asdict(trial), "survived": trial.survived}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Run the trials, write the CSV, print the table; status 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--work", type=Path, default=ROOT / "runs", help="data, model, run and CSV go here")
    parser.add_argument("--seed", type=int, help="of the moments; drawn when left out")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    run, path = Run(arguments.work), arguments.work / "faults.csv"
    done = sum(1 for _ in csv.DictReader(path.open())) if path.exists() else 0
    # every fault at every moment in turn, from where the CSV ends
    order = [(fault, moment) for moment in MOMENTS for fault in FAULTS]
    plan = list(itertools.islice(itertools.cycle(order), done, done + arguments.trials))
    mount(run.checkpoints)
    for trial in play(run, plan, chance):
        append(path, trial)
        print(trial, "survived" if trial.survived else "LOST", flush=True)
    wrong = gaps(run)
    print(table(list(csv.DictReader(path.open()))))
    print(f"merged log: {wrong or 'every step once'}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
