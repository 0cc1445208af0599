"""The GPU environment: its pins agree, its script gives it flash attention or says why not, and the tests pass in it.

The last part needs that environment (11 GB, made by ``run_scripts/setup_env.sh gpu``, no GPU): CPPO_VERL_GPU_ENV names
its folder. Then the tests of plug-in, checks, doctor, presets, maths, losses, Top-K and engine run with its Python, on
the CPU device; which could not run there, and why, is printed.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

GPU_ENV = os.environ.get("CPPO_VERL_GPU_ENV")
CONTRACT = ("trust_region", "integration", "theory", "launch", "doctor", "recipe", "recording", "data_prep")
# Tests that ask about the CPU stack's own packages or make one of their own beside it.
OF_THE_CPU_STACK = {
    "integration/test_cpu_platform.py": "vLLM's CPU engine is not in this environment",
    "integration/test_cpu_weights.py": "vLLM's CPU engine is not in this environment",
    "integration/test_compatibility.py": "installs other versions of verl beside the environment",
}


def lines(name: str) -> list[Requirement]:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    return [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_constraints_agree_with_the_requirements():
    pins = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in lines("gpu-constraints")}
    for name in ("base", "gpu", "dev"):
        for requirement in lines(name):
            pin = pins.get(canonicalize_name(requirement.name))
            if name != "dev":
                assert pin is not None, f"{requirement} of {name}.txt has no pin"
            assert pin is None or requirement.specifier.contains(pin), f"{name}.txt: {requirement}, pinned to {pin}"
    assert all(re.fullmatch(r"==[^,*]+", str(r.specifier)) for r in lines("gpu-constraints"))


def test_constraints_are_what_verl_pins_for_vllm():
    """verl's own extra, read from its metadata, where it names a version."""
    from importlib import metadata

    pins = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in lines("gpu-constraints")}
    asked = [Requirement(text) for text in metadata.requires("verl") or ()]
    for extra in ("", "vllm", "verl-core", "math"):
        for requirement in asked:
            if requirement.name != "verl" and (
                requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            ):
                pin = pins.get(canonicalize_name(requirement.name))
                assert pin is not None and requirement.specifier.contains(pin), f"{requirement}, pinned to {pin}"


def test_the_container_is_made_of_what_is_here():
    text = (ROOT / "docker/Dockerfile").read_text()
    assert (
        "ARG BASE=verlai/verl:vllm024.dev2" in text and "verlai/verl:vllm024.dev2" in (ROOT / "docs/gpu.md").read_text()
    )
    for path in re.findall(r"-c (requirements\S+)", text):
        assert (ROOT / path).is_file()
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", ".venv-gpu", "runs"} <= set(ignored)


# --- flash attention --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """An empty environment's Python."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin/python"


def wheel(folder: Path, source: str) -> Path:
    """A wheel of a flash-attn that is one line."""
    (folder / "flash_attn").mkdir(parents=True)
    (folder / "flash_attn/__init__.py").write_text(source)
    (folder / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='flash-attn', version='2.8.3', packages=['flash_attn'])"
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(folder),
        ],
        check=True,
    )
    return next(folder.glob("*.whl"))


def flash_attention(python: Path, **variables: str) -> subprocess.CompletedProcess:
    """The script, without an index and without nvcc."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "FLASH_", "CUDA_"))}
    environment = {**clean, "PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", **variables}
    command = ["bash", str(ROOT / "run_scripts/flash_attention.sh"), str(python)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def has_flash_attention(python: Path) -> bool:
    return subprocess.run([str(python), "-c", "import flash_attn"], capture_output=True).returncode == 0


def test_ways_to_flash_attention(bare, tmp_path):
    """One environment through all of them: nothing, a broken wheel, a good one, what is there, and an old one."""
    nothing = flash_attention(bare)
    assert nothing.returncode == 0
    assert "takes the kernel from the hub" in nothing.stderr and "docs/gpu.md" in nothing.stderr

    broken = wheel(tmp_path / "broken", "import flash_attn_2_cuda")
    done = flash_attention(bare, FLASH_ATTN_WHEEL=str(broken))
    assert done.returncode == 1
    assert "No module named 'flash_attn_2_cuda'); taken out again" in done.stderr
    assert "was built for another Python, torch or CUDA" in done.stderr
    assert not has_flash_attention(bare)

    good = wheel(tmp_path / "good", "def flash_attn_varlen_func(): pass")
    assert f"flash-attn 2.8.3 from {good}" in flash_attention(bare, FLASH_ATTN_WHEEL=str(good)).stderr
    assert has_flash_attention(bare)
    assert "flash-attn 2.8.3 is there" in flash_attention(bare).stderr

    subprocess.run([str(bare), "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", str(broken)], check=True)
    done = flash_attention(bare, PIP_FIND_LINKS=str(good.parent))  # a wheel that pip finds by itself
    assert "taken out again" in done.stderr and "a wheel of your index" in done.stderr
    assert has_flash_attention(bare)


def test_what_compiling_needs_is_said(bare):
    assert "no torch in" in flash_attention(bare, FLASH_ATTN="build").stderr
    torch = next(bare.parent.parent.glob("lib/python*/site-packages")) / "torch.py"
    torch.write_text("class version: cuda = '13.0'")
    try:
        done = flash_attention(bare, FLASH_ATTN="build")
        assert done.returncode == 1
        assert "needs nvcc of CUDA 13.0" in done.stderr and "docs/gpu.md" in done.stderr
    finally:
        torch.unlink()
    assert "'compile' is not one of: auto build none" in flash_attention(bare, FLASH_ATTN="compile").stderr
    assert flash_attention(bare, FLASH_ATTN="none").returncode == 0


def test_the_two_stacks_do_not_mix(tmp_path):
    (tmp_path / ".cppo_verl_installed").write_text("0123  cpu\n")
    command = ["bash", str(ROOT / "run_scripts/setup_env.sh"), "gpu"]
    done = subprocess.run(command, env={**os.environ, "CPPO_VENV": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "holds the other stack" in done.stderr


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not GPU_ENV, reason="CPPO_VERL_GPU_ENV is not set (the folder that setup_env.sh gpu makes)")
def test_the_tests_pass_in_the_gpu_environment(tmp_path, capsys):
    python = Path(str(GPU_ENV)).absolute() / "bin/python"
    report = tmp_path / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += [f"tests/{room}" for room in CONTRACT]
    command += [f"--ignore=tests/{file}" for file in OF_THE_CPU_STACK]
    environment = {
        **os.environ,
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped: dict[str, int] = {}
    for case in cases:
        for skip in case.iter("skipped"):
            skipped[skip.get("message", "")] = skipped.get(skip.get("message", ""), 0) + 1
    with capsys.disabled():
        print(f"\nin {GPU_ENV}: {len(cases)} tests, {sum(skipped.values())} could not run")
        for reason, count in skipped.items():
            print(f"  {count} skipped: {reason}")
        for file, reason in OF_THE_CPU_STACK.items():
            print(f"  tests/{file} left out: {reason}")
    assert done.returncode == 0, done.stdout[-8000:]
    assert len(cases) - sum(skipped.values()) > 500
