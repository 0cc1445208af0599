"""The plug-in on both versions of verl that it supports, and what is said of another.

The other version is installed beside the environment, without its requirements, and put in front of it. Where pip has
no way to get it, the test is skipped.
"""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from cppo_verl import presets
from cppo_verl.doctor import software
from cppo_verl.doctor.verdicts import Asked, Trouble
from cppo_verl.integration import checks
from tests import ROOT
from tests.faults import loss_values

GROUP_OF_8 = "actor_rollout_ref.rollout.n=8"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def installed(version: str, folder: Path) -> Path:
    """The folder, with that version of verl in it, to put in front of the environment."""
    command = [*PIP, "install", "--no-deps", "--target", folder, f"verl=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip(f"pip has no way to get verl=={version}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.stack
def test_both_versions_compute_the_same_losses(tmp_path):
    here = json.loads(json.dumps(loss_values.found()))
    other_version = "0.9.0" if here["version"] == "0.9.1" else "0.9.1"
    folder = installed(other_version, tmp_path)
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.loss_values"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert (here["version"], there["version"]) == (metadata.version("verl"), other_version)
    assert there["where"].startswith(str(folder)) and not here["where"].startswith(str(folder))
    assert here["trainer"] == there["trainer"] == "cppo_verl.integration.trainer"
    assert here["losses"] == there["losses"]
    assert len({tuple(values) for values in here["losses"].values()}) >= 9  # the two TRM rules may agree


def test_a_version_that_nobody_has_tried_is_refused(tmp_path, monkeypatch):
    """By the start check and by the doctor: a distribution that calls itself so, with the present code."""
    info = tmp_path / "verl-0.10.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = re.escape("verl 0.10.0 is outside <0.9.2,>=0.9.0: pip install verl==0.9.1")
    with pytest.raises(checks.RunConfigError, match=said):
        checks.require(presets.compose("cppo", [GROUP_OF_8]))
    with pytest.raises(Trouble, match=re.escape("verl is 0.10.0 (pip install 'verl<0.9.2,>=0.9.0')")):
        software.versions(Asked())
