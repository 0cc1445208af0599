"""Data and warm-started model, made once by the quickstart's own steps."""

import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import ROOT


@dataclass(frozen=True)
class Work:
    """A quickstart's working folder with data and model in it."""

    folder: Path
    data: Path
    model: Path


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
