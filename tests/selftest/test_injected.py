"""The command finds a fault of each kind, which the tests bring in from outside; the package has no switch for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cppo_verl.selftest.table import FAILS, NOT_RUN
from tests import ROOT

pytestmark = pytest.mark.stack

COMMAND = [sys.executable, "-m", "cppo_verl.cli.main", "selftest"]


def selftest(out: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, dict], str]:
    """Exit status, results by stage, and what was printed."""
    values = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    command = [*COMMAND, "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=1500)
    content = json.loads((out / "selftest.json").read_text())
    return done.returncode, {result["stage"]: result for result in content["results"]}, done.stdout + done.stderr


def failed_rows(result: dict) -> set[str]:
    return {row["what"] for row in result["rows"] if row["verdict"] == FAILS}


def test_a_top_k_gathered_a_token_too_late_is_found(tmp_path):
    outside = {"PYTHONPATH": str(ROOT), "VERL_USE_EXTERNAL_MODULES": "tests.selftest.injected.wrong_gather"}
    status, results, said = selftest(tmp_path, "--stages", "losses", **outside)
    assert status == 1
    assert {what.split(":")[0] for what in failed_rows(results["losses"])} == {
        f"top-K {kind} from {dtype} logits" for kind in ("TV", "KL") for dtype in ("float32", "bfloat16")
    }
    assert "FAILS top-K TV from float32 logits" in said


def test_a_missing_package_is_found_and_what_needs_it_is_not_started(tmp_path):
    outside = {"PYTHONPATH": str(ROOT / "tests/selftest/without_ray")}
    status, results, said = selftest(tmp_path, "--stages", "doctor,one-binary", **outside)
    assert status == 1
    assert results["doctor"]["verdict"] == FAILS
    assert any("No module named 'ray'" in row["note"] for row in results["doctor"]["rows"])
    assert results["one-binary"]["verdict"] == NOT_RUN
    assert "it comes after doctor, tiny, which did not hold" in said
