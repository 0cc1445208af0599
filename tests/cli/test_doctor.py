"""``cppo-verl doctor`` as a user runs it: status 0 only where a run would start."""

import os
import subprocess
import sys


def doctor(**environment: str | None) -> tuple[int, dict[str, str], str]:
    """Exit status, verdict by check, and the whole output."""
    values = {**os.environ, "VERL_PLATFORM": "cpu", **environment}
    command = [sys.executable, "-m", "cppo_verl.cli.main", "doctor"]
    kept = {key: value for key, value in values.items() if value is not None}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=300)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("  ok", "FAIL"))]
    return done.returncode, {rest.split(":")[0]: verdict for verdict, rest in lines}, done.stdout


CHECKS = {"versions", "plug-in", "presets", "device", "vLLM"}


def test_a_machine_where_a_run_would_start():
    status, verdicts, output = doctor()
    assert status == 0, output
    assert verdicts == dict.fromkeys(CHECKS, "ok")
    assert "A run would start here." in output
    assert "cppo_topk" in output and "minpro" in output


def test_what_is_wrong_and_what_to_do():
    status, verdicts, output = doctor(VERL_PLATFORM=None, VERL_USE_EXTERNAL_PLUGINS="none")
    assert status == 1
    assert verdicts == {"versions": "ok", "plug-in": "FAIL", "presets": "ok", "device": "FAIL", "vLLM": "FAIL"}, output
    assert "unset it or add cppo_verl" in output
    assert "set VERL_PLATFORM=cpu and add +platform=cpu" in output
    assert "3 of 5 checks failed" in output
