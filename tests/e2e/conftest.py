"""What several files read: data and model, made once by the quickstart's own steps, and two runs of the real stack."""

import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cppo_verl.integration.cpu import fork_server
from cppo_verl.launch import checkpoints, supervise
from tests import ROOT

from . import recipes, walk
from .runs import Work, ended_well, kill_driver, start_until


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Work:
    base = tmp_path_factory.getbasetemp()
    # processes of one test run have folders of their own in a common one
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "work"
    folder.mkdir(exist_ok=True)
    made = Work(folder, folder / "arithmetic-seed0", folder / "tiny-qwen3-seed0")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two would wait for each other beside the other tests
    with (folder / ".lock").open("w") as lock:  # the first makes them, the others find them made
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["data_prep.arithmetic", "--out", made.data, "--seed", "0"],
            ["data_prep.tiny_qwen3", "--data", made.data, "--out", made.model, "--seed", "0"],
        ):
            subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, env=environment, check=True)
    return made


@dataclass(frozen=True)
class Resumed:
    """A run whose driver was killed after the checkpoint of a step, and which the same command then finished."""

    run: Path
    checkpoint: int
    output: str
    left_behind: list[psutil.Process]
    forked: set[str]  # titles, less what a process is doing, of those that the fork server made


@pytest.fixture(scope="session")
def resumed(work: Work) -> Resumed:
    """The script of Qwen3-8B-Base in miniature, four steps, greedy validation before and after, killed between 2 and 4.

    Two ranks share each sequence (SP=2), on the Top-K estimator, with checkpointing and states offloaded.
    """
    run, chosen = work.folder / "resumed", {"METHOD": "dppo", "SP": "2"}
    more = ["+platform=cpu", f"trainer.validation_data_dir={run}/validations", "trainer.v1.trust_region.record=8"]
    more += [f"actor_rollout_ref.rollout.val_kwargs.{each}" for each in ("n=1", "temperature=0", "do_sample=false")]
    command = recipes.command("qwen3_8b_base", *more)
    sizes = recipes.smaller(work, "qwen3_8b_base", recipes.overrides("qwen3_8b_base", "dppo", SP="2"))
    steps = {"STEPS": 4, "SAVE_FREQ": 2, "TEST_FREQ": 4, "LR": "3e-4"}
    values = recipes.environment(**sizes, **chosen, **steps, RUN=run)
    launcher = start_until(2, run, command, values)
    forked = _forked(run.resolve())
    output = kill_driver(run, launcher)
    left_behind = list(supervise.processes_of(run.resolve()))
    killed = Resumed(run, checkpoints.pointed_at(run / "checkpoints") or 0, output, left_behind, forked)
    ended_well(subprocess.run(command, env=values, capture_output=True, text=True, timeout=1500))
    return killed


def _forked(run: Path) -> set[str]:
    found = set()
    for process in supervise.processes_of(run):
        try:
            parent = process.parent()
            if parent is not None and fork_server.__name__ in parent.cmdline():
                found.add("".join(process.cmdline()).strip().split(".")[0])
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="session")
def own_rule(work: Work, tmp_path_factory) -> Path:
    """The run of docs/extending.md, which goes on with every preset and the runs that people have."""
    return walk.own_rule(work, tmp_path_factory.mktemp("reader"))
