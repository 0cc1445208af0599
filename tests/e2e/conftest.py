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
from tests import ROOT, stand_in

from . import walk
from .runs import QUICKSTART, Work, ended_well, environment, kill_driver, start_until


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
    """Four steps of two ranks with greedy validation before and after, killed between 2 and 4.

    The ranks share each sequence, on the Top-K estimator, with checkpointing and states offloaded.
    """
    run = work.folder / "resumed"
    model, fsdp, rollout = (f"actor_rollout_ref.{part}." for part in ("model", "actor.fsdp_config", "rollout"))
    command = [QUICKSTART, "trainer.save_freq=2", "trainer.test_freq=4", "data.train_batch_size=8", f"{rollout}n=4"]
    command += [f"{rollout}val_kwargs.{each}" for each in ("n=1", "temperature=0", "do_sample=false")]
    command += [f"++{model}override_config.attn_implementation=flash_attention_2"]
    command += [f"{model}enable_gradient_checkpointing=true", f"{fsdp}ulysses_sequence_parallel_size=2"]
    command += [f"{fsdp}param_offload=true", f"{fsdp}optimizer_offload=true"]
    values = environment(work, RUN=str(run), METHOD="dppo_topk", RANKS="2", STEPS="4", **stand_in.variables())
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
