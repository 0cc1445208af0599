"""The GPU environment: its pins agree, its script gives it flash attention or says why not, and the tests pass in it.

The last part needs that environment (11 GB, made by ``run_scripts/setup_env.sh gpu``, no GPU): CPPO_VERL_GPU_ENV names
its folder. Then the tests of plug-in, checks, doctor, presets, maths, losses, Top-K and engine run with its Python, on
the CPU device; which could not run there, and why, is printed.
"""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT
from tests.test_packaging import requirements

GPU_ENV = os.environ.get("CPPO_VERL_GPU_ENV")
CONTRACT = ("trust_region", "integration", "theory", "launch", "doctor", "recipe", "recording", "data_prep")
# Tests that ask about the CPU stack's own packages or make one of their own beside it.
OF_THE_CPU_STACK = {
    "integration/test_cpu_platform.py": "vLLM's CPU engine is not in this environment",
    "integration/test_compatibility.py": "installs other versions of verl beside the environment",
}


def test_constraints_agree_with_the_requirements_and_with_verl():
    extras = ("", "vllm", "verl-core", "math")  # what verl's own extra for vLLM asks for
    verls = [Requirement(text) for text in metadata.requires("verl") or ()]
    verls = [r for r in verls if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    pins = {canonicalize_name(r.name): str(r.specifier) for r in requirements("gpu-constraints")}
    assert all(re.fullmatch(r"==[^,*]+", pin) for pin in pins.values())
    for requirement in [*requirements("base"), *requirements("gpu"), *(r for r in verls if r.name != "verl")]:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin and requirement.specifier.contains(pin[2:]), f"{requirement}, pinned to {pin}"
    for requirement in requirements("dev"):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is None or requirement.specifier.contains(pin[2:]), f"{requirement}, pinned to {pin}"


def test_the_container_is_made_of_what_is_here():
    text = (ROOT / "docker/Dockerfile").read_text()
    base = re.search(r"ARG BASE=(\S+)", text)
    assert base is not None and base[1] in (ROOT / "docs/gpu.md").read_text()
    assert all((ROOT / path).is_file() for path in re.findall(r"-c (requirements\S+)", text))
    assert {".venv", ".venv-gpu", "runs"} <= set((ROOT / ".dockerignore").read_text().split())


def wheel(folder: Path, source: str) -> Path:
    """A wheel of a flash-attn that is one line."""
    about, file = "flash_attn-2.8.3.dist-info", folder / "flash_attn-2.8.3-py3-none-any.whl"
    folder.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("flash_attn/__init__.py", source)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return file


def flash_attention(python: Path, **variables: str) -> tuple[int, str]:
    """Status and words of the script, without an index and without nvcc."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "FLASH_", "CUDA_"))}
    environment = {**clean, "PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", **variables}
    command = ["bash", str(ROOT / "run_scripts/flash_attention.sh"), str(python)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.stack
def test_ways_to_flash_attention(tmp_path):
    """An empty environment through them: nothing, what compiling needs, a broken wheel, a good one, what is there."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    bare = tmp_path / "bin/python"

    def is_there() -> bool:
        return subprocess.run([str(bare), "-c", "import flash_attn"], capture_output=True).returncode == 0

    status, said = flash_attention(bare)
    assert status == 0 and "takes the kernel from the hub" in said and "docs/gpu.md" in said
    assert flash_attention(bare, FLASH_ATTN="none") == (0, "")
    assert "no torch in" in flash_attention(bare, FLASH_ATTN="build")[1]
    torch = next(tmp_path.glob("lib/python*/site-packages")) / "torch.py"
    torch.write_text("class version: cuda = '13.0'")
    status, said = flash_attention(bare, FLASH_ATTN="build")
    torch.unlink()
    assert status == 1 and "needs nvcc of CUDA 13.0" in said and "docs/gpu.md" in said
    broken = wheel(tmp_path / "broken", "import flash_attn_2_cuda")
    status, said = flash_attention(bare, FLASH_ATTN_WHEEL=str(broken))
    assert status == 1 and not is_there() and "No module named 'flash_attn_2_cuda'); taken out again" in said
    good = wheel(tmp_path / "good", "def flash_attn_varlen_func(): pass")
    assert f"flash-attn 2.8.3 from {good}" in flash_attention(bare, FLASH_ATTN_WHEEL=str(good))[1] and is_there()
    assert "flash-attn 2.8.3 is there" in flash_attention(bare)[1]


def test_the_two_stacks_do_not_mix(tmp_path):
    (tmp_path / ".cppo_verl_installed").write_text("0123  cpu\n")
    command = ["bash", str(ROOT / "run_scripts/setup_env.sh"), "gpu"]
    done = subprocess.run(command, env={**os.environ, "CPPO_VENV": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and "holds the other stack" in done.stderr


@pytest.mark.skipif(not GPU_ENV, reason="CPPO_VERL_GPU_ENV is not set (the folder that setup_env.sh gpu makes)")
def test_the_tests_pass_in_the_gpu_environment(capsys):
    command = [str(Path(str(GPU_ENV)).absolute() / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{room}" for room in CONTRACT]
    command += [f"--ignore=tests/{file}" for file in OF_THE_CPU_STACK]
    values = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **values}, capture_output=True, text=True)
    with capsys.disabled():
        print(f"\nin {GPU_ENV}, without {OF_THE_CPU_STACK}:", done.stdout[-8000:])
    assert done.returncode == 0
