"""Helpers of the selftest's tests: a table that keeps its rows here, and the command as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cppo_verl.selftest.stage import FAILS, Row, Setting, Table
from tests import ROOT


def table(folder: Path) -> Table:
    return Table(folder / "rows.jsonl")


def machine(folder: Path, device: str = "cpu", ranks: int = 2, gpu_gb: float = 80, **more: Any) -> Setting:
    room = {"ranks": ranks, "GB memory": 8, "GB disk": 8} | ({"GB a GPU": gpu_gb} if device == "cuda" else {})
    return Setting(folder, device, room, **more)


def failed(rows: list[Row]) -> set[str]:
    """What failed, up to the first colon."""
    return {row.what.split(":")[0] for row in rows if row.verdict == FAILS}


def selftest(out: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, dict], str]:
    """Exit status, results by stage, and what was printed."""
    values = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-m", "cppo_verl.cli.main", "selftest", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=1500)
    content = json.loads((out / "selftest.json").read_text())
    return done.returncode, {result["stage"]: result for result in content["results"]}, done.stdout + done.stderr
