"""The quickstart as the tests start it, and what a run left in its log."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pandas

from cppo_verl.launch import checkpoints, supervise
from tests import ROOT

P = "actor/trust_region/"
QUICKSTART = str(ROOT / "run_scripts/quickstart.sh")
SMALL = (
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
)
SAMPLED = {"n": 8, "temperature": 0.7, "top_p": 0.95}


@dataclass(frozen=True)
class Work:
    """A quickstart's working folder with data and model in it."""

    folder: Path
    data: Path
    model: Path


def environment(work: Work, **values: str) -> dict[str, str]:
    """Of a quickstart that joins no Ray cluster that happens to be here, or was."""
    return {**os.environ, "WORK": str(work.folder), "RAY_ADDRESS": "local", **values}


def quickstart(work: Work, *overrides: str, **values: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [QUICKSTART, *overrides], env=environment(work, **values), capture_output=True, text=True, timeout=1500
    )


def ended_well(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def start_until(checkpoint: int, run: Path, command: list[str], values: dict[str, str]) -> subprocess.Popen:
    """The launcher of a run that has written the checkpoint of that step, and goes on."""
    launcher = subprocess.Popen(command, env=values, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 900
    while (checkpoints.pointed_at(run / "checkpoints") or 0) < checkpoint:
        assert launcher.poll() is None, launcher.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return launcher


def kill_driver(run: Path, launcher: subprocess.Popen) -> str:
    """What the launcher said of it, once it has ended."""
    driver = next(p for p in supervise.processes_of(run.resolve()) if "verl.trainer.main_ppo" in p.cmdline())
    driver.kill()
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    return output


def logs(run: Path) -> list[Path]:
    """Of each start, in their order."""
    return sorted((run / "logs").glob("metrics-*.jsonl"))


def logged(run: Path) -> dict[int, dict]:
    """What a run logged of each step, the last start's word where several have one."""
    found: dict[int, dict] = {}
    for log in logs(run):
        for line in map(json.loads, log.read_text().splitlines()):
            found.setdefault(line["step"], {}).update(line["data"])
    return found


def validation(work: Work, run: Path, step: int) -> pandas.DataFrame:
    """The samples that a run's validation kept, sorted by problem."""
    lines = (run / "validations" / f"{step}.jsonl").read_text().splitlines()
    frame = pandas.DataFrame([json.loads(line) for line in lines])
    prompts = pandas.read_parquet(work.data / "val.parquet")["prompt"]
    number = {prompt[0]["content"]: i for i, prompt in enumerate(prompts)}
    # "user\n3+4-2=?\nassistant\n", the special tokens left out
    frame["number"] = [number[text.split("\n")[1]] for text in frame["input"]]
    return frame.sort_values("number")
