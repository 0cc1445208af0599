"""What is said of a machine, from numbers that a machine could give; what this one gives is in tests/cli."""

import ctypes
from pathlib import Path

import pytest

from cppo_verl.doctor import machine
from cppo_verl.doctor.machine import Gpu
from cppo_verl.doctor.verdicts import GB, Asked, Verdict

H100, D = Gpu("H100", (9, 0), free=int(79 * GB), total=int(80 * GB)), Path("/d")
BUSY, OLD = Gpu("H100", (9, 0), int(10 * GB), int(80 * GB)), Gpu("T4", (7, 5), int(15 * GB), int(16 * GB))


def verdict(check, *numbers) -> tuple[str, str]:
    """How the check ends, and its words."""
    try:
        return "ok", check(*numbers)
    except Verdict as ended:
        return ended.verdict, str(ended)


@pytest.mark.parametrize(
    ("check", "numbers", "ends", "words"),
    [
        (machine.driver_line, (13010, "13.0"), "ok", "knows CUDA 13.1, torch is built for 13.0"),
        (machine.driver_line, (13000, "13.2"), "ok", "13.0"),  # minor versions of one major fit together
        (machine.driver_line, (12080, "13.0"), "FAIL", "install driver 580.65.06 or newer"),
        (machine.driver_line, (0, "13.0"), "--", "no NVIDIA driver here"),
        (machine.gpu_line, ([H100] * 8, 0.8, 8), "ok", "8 x H100, at least 79.0 GB free, of which vLLM wants 80%"),
        (machine.gpu_line, ([H100] * 4, 0.8, 8), "FAIL", "4 GPUs visible, trainer.n_gpus_per_node=8"),
        (machine.gpu_line, ([H100, BUSY], 0.5, None), "FAIL", "GPU 1 (H100) has 10.0 of 80.0 GB"),
        (machine.gpu_line, ([OLD], 0.5, None), "FAIL", "compute capability 7.5"),
        (machine.shared_memory_line, (0.064 * GB,), "FAIL", "0.06 GB free in /dev/shm"),  # a container's default
        (machine.shared_memory_line, (2 * GB,), "note", "--shm-size=16g"),
        (machine.shared_memory_line, (30 * GB,), "ok", "30.00 GB free"),
        (machine.disk_line, (500 * GB, 0, 98 * GB, 2, D), "ok", "enough for 2 checkpoints of 98 GB"),
        (machine.disk_line, (150 * GB, 0, 98 * GB, 2, D), "FAIL", "2 checkpoints of 98 GB need 196 more"),
        (machine.disk_line, (150 * GB, 98 * GB, 98 * GB, 2, D), "ok", "enough"),  # one lies there already
        (machine.disk_line, (50 * GB, 0, None, 2, D), "ok", "50 GB free"),
        (machine.disk_line, (5 * GB, 0, None, 2, D), "note", "--recipe or --model says"),
    ],
)
def test_lines(check, numbers, ends, words):
    found, said = verdict(check, *numbers)
    assert found == ends and words in said


def test_the_drivers_cuda_is_asked_of_its_library(monkeypatch):
    class Library:
        @staticmethod
        def cuDriverGetVersion(pointer):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int)).contents.value = 13020
            return 0

    monkeypatch.setattr(machine, "_cuda_of_torch", lambda: "13.0")
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Library() if name == "libcuda.so.1" else None)
    assert machine.driver(Asked()) == "the driver knows CUDA 13.2, torch is built for 13.0"


def test_disk_counts_what_the_run_has_written(tmp_path):
    run = tmp_path / "runs/qwen3_8b_base/cppo-seed0"
    assert f"free at {tmp_path}," in verdict(machine.disk, Asked(checkpoint_bytes=1e15, run_dir=run))[1]
    (run / "checkpoints/global_step_20").mkdir(parents=True)
    (run / "checkpoints/global_step_20/shard").write_bytes(bytes(10**6))
    found, said = verdict(machine.disk, Asked(checkpoint_bytes=5e5, run_dir=run))
    assert found == "ok" and f"free at {run}," in said
