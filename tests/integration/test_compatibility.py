"""The plug-in on the versions of verl it says it supports, and on one that it does not.

Other versions are installed beside the environment, without their requirements, and put in front of it. Where pip has
no way to get them, these tests are skipped; CPPO_VERL_WHEELS=DIR names a folder with the wheels.
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


@pytest.fixture(scope="session")
def verl(tmp_path_factory):
    """Folder with the asked version of verl, to put in front of the environment."""

    def install(version: str) -> Path:
        folder = tmp_path_factory.mktemp(f"verl-{version}")
        wheels = os.environ.get("CPPO_VERL_WHEELS")
        source = ["--no-index", "--find-links", wheels] if wheels else []
        command = [*PIP, "install", "--no-deps", *source, "--target", folder, f"verl=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode and "No matching distribution" in done.stderr:
            pytest.skip(f"pip has no way to get verl=={version}")
        assert done.returncode == 0, done.stderr
        return folder

    return install


def run(front: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(front), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def losses(front: Path) -> dict:
    done = run(front, "-m", "tests.faults.loss_values")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.stack
def test_both_versions_compute_the_same_losses(verl):
    here = json.loads(json.dumps(loss_values.found()))
    other_version = "0.9.0" if here["version"] == "0.9.1" else "0.9.1"
    folder = verl(other_version)
    there = losses(folder)
    assert (here["version"], there["version"]) == (metadata.version("verl"), other_version)
    assert there["where"].startswith(str(folder)) and not here["where"].startswith(str(folder))
    assert here["trainer"] == there["trainer"] == "cppo_verl.integration.trainer"
    assert here["losses"] == there["losses"]
    assert len({tuple(values) for values in here["losses"].values()}) >= 9  # the two TRM rules may agree


@pytest.mark.stack
def test_an_older_version_is_refused_by_name(verl, tmp_path):
    done = run(verl("0.8.0"), "-m", "verl.trainer.main_ppo", "+trust_region=cppo", GROUP_OF_8, cwd=tmp_path)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "verl 0.8.0 is outside <0.9.2,>=0.9.0" in said
    assert "verl==0.9.1" in said
    assert "Started a local Ray instance" not in said


@pytest.mark.parametrize("version", ["0.8.0", "0.10.0"])
def test_versions_that_nobody_has_tried_are_refused(tmp_path, monkeypatch, version):
    """By the start check and by the doctor: a distribution that calls itself so, with the present code."""
    info = tmp_path / f"verl-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = re.escape(f"verl {version} is outside <0.9.2,>=0.9.0: pip install verl==0.9.1")
    with pytest.raises(checks.RunConfigError, match=said):
        checks.require(presets.compose("cppo", [GROUP_OF_8]))
    with pytest.raises(Trouble, match=re.escape(f"verl is {version} (pip install 'verl<0.9.2,>=0.9.0')")):
        software.versions(Asked())
