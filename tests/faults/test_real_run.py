"""A real run on CPU and its resumption from a copied checkpoint: the same losses, no open port, no secret on the disk.

Two starts of the stack, about two minutes; CPPO_VERL_FAULTS=1 runs them.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from cppo_verl.launch import supervise
from tests.e2e.runs import QUICKSTART, SMALL, Work, environment, logged

pytestmark = pytest.mark.skipif(not os.environ.get("CPPO_VERL_FAULTS"), reason="CPPO_VERL_FAULTS is not set")

CANARY = "canary-3b9d52"
COMMAND = [QUICKSTART, *SMALL, "trainer.v1.trust_region.reproducible=true", "trainer.save_freq=2"]
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def listening(run: Path) -> set[tuple[str, str]]:
    """(process, address) of every TCP socket of the run that listens beyond loopback."""
    found = set()
    for process in supervise.processes_of(run):
        try:
            title, sockets = " ".join(process.cmdline()), process.net_connections("tcp")
        except psutil.Error:
            continue
        found |= {(title[:80], s.laddr.ip) for s in sockets if s.status == "LISTEN" and s.laddr.ip not in LOOPBACK}
    return found


def start(work: Work, run: Path, folder: Path) -> set[tuple[str, str]]:
    """Run to the end; what listened beyond loopback meanwhile."""
    values = environment(work, RUN=str(run), STEPS="4", WANDB_API_KEY=CANARY, HF_TOKEN=CANARY)
    open_to_all: set[tuple[str, str]] = set()
    with (folder / f"{run.name}.log").open("w") as log:
        child = subprocess.Popen(COMMAND, env=values, stdout=log, stderr=subprocess.STDOUT)
        while child.poll() is None:
            open_to_all |= listening(run.resolve())
            time.sleep(1)
    assert child.returncode == 0, (folder / f"{run.name}.log").read_text()[-4000:]
    return open_to_all


@pytest.fixture(scope="module")
def runs(work: Work, tmp_path_factory) -> tuple[Path, Path, set[tuple[str, str]]]:
    """An uninterrupted run, one that goes on from its checkpoint of step 2, and what listened."""
    folder = tmp_path_factory.mktemp("runs")
    whole, resumed = folder / "whole", folder / "resumed"
    found = start(work, whole, folder)
    (resumed / "checkpoints").mkdir(parents=True)
    (resumed / "logs").mkdir()
    shutil.copytree(whole / "checkpoints/global_step_2", resumed / "checkpoints/global_step_2")
    return whole, resumed, found | start(work, resumed, folder)


def test_a_resumed_run_agrees_with_an_uninterrupted_one(runs):
    whole, resumed = logged(runs[0]), logged(runs[1])
    assert sorted(whole) == [1, 2, 3, 4]
    assert sorted(resumed) == [2, 3, 4]  # step 2 from its checkpoint
    for step in (3, 4):
        assert whole[step]["trust_region/zero_variance_share"] < 1
        names = [name for name in whole[step] if name.startswith(("actor/", "critic/", "response_length/"))]
        names = [name for name in names if not name.startswith(("actor/perf", "actor/mfu"))]
        assert "actor/pg_loss" in names and "actor/grad_norm" in names
        for name in names:
            assert resumed[step][name] == pytest.approx(whole[step][name], abs=1e-5, rel=1e-5), name
    assert resumed[2]["actor/pg_loss"] == whole[2]["actor/pg_loss"]


def test_nothing_listens_beyond_loopback(runs):
    assert runs[2] == set()


def test_no_secret_is_written(runs):
    for run in runs[:2]:
        files = [path for path in run.rglob("*") if path.is_file()]
        assert len(files) > 10
        assert not [path for path in files if CANARY.encode() in path.read_bytes()]
