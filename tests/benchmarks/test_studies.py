"""The studies of whole runs start every arm once, with a preset."""

import os
import shutil
import subprocess

import pytest

from cppo_verl import presets
from tests import ROOT

SCRIPT = """#!/usr/bin/env bash
set -e
echo "$METHOD $STEPS $RUN $*" >> "$WORK/started"
[[ ${RUN##*/} != "${FAILS:-}" ]]
mkdir -p "$RUN/report" && touch "$RUN/report/report.html"
"""


@pytest.mark.parametrize(
    ("name", "script", "steps", "runs", "one"),
    [("real_model", "real_model", "20", 13, "cppo-seed1"), ("stale", "quickstart", "60", 30, "dppo-ahead4-seed1")],
)
def test_a_study_starts_each_run_once_and_goes_on_where_it_stopped(name, script, steps, runs, one, tmp_path):
    setup, program = f"#!/bin/sh\necho {tmp_path}/env\n", '#!/bin/sh\necho "$*"'
    written = {f"run_scripts/{script}.sh": SCRIPT, "run_scripts/setup_env.sh": setup, "env/bin/cppo-verl": program}
    for place, content in written.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    study = shutil.copytree(ROOT / "benchmarks/studies", tmp_path / "benchmarks/studies") / f"{name}.sh"
    environment = {**os.environ, "WORK": str(tmp_path)}
    stopped = subprocess.run(["bash", study], env=environment | {"FAILS": one}, capture_output=True)
    assert stopped.returncode == 1 and not stopped.stdout
    told = subprocess.run(["bash", study], env=environment, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"report {tmp_path}/study-{name}")
    started = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    folders = [line[2] for line in started]
    assert (
        len(set(folders)) == runs and len(folders) == runs + 1 and folders.count(f"{tmp_path}/study-{name}/{one}") == 2
    )
    assert {line[0] for line in started} <= set(presets.names()) and {line[1] for line in started} == {steps}
