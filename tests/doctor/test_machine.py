"""What is said of a machine, from numbers that a machine could give; what this one gives is in tests/cli."""

from types import SimpleNamespace

from cppo_verl.doctor import machine
from cppo_verl.doctor.machine import Gpu
from cppo_verl.doctor.verdicts import GB, Asked, Verdict

H100 = Gpu("H100", (9, 0), free=int(79 * GB), total=int(80 * GB))
BUSY, OLD = Gpu("H100", (9, 0), int(10 * GB), int(80 * GB)), Gpu("T4", (7, 5), int(15 * GB), int(16 * GB))


def verdict(check, *numbers) -> tuple[str, str]:
    """How the check ends, and its words."""
    try:
        return "ok", check(*numbers)
    except Verdict as ended:
        return ended.verdict, str(ended)


def test_gpus():
    for gpus, share, wanted, ends, words in (
        ([H100] * 8, 0.8, 8, "ok", "8 x H100, at least 79.0 GB free, of which vLLM wants 80%"),
        ([H100] * 4, 0.8, 8, "FAIL", "4 GPUs visible, trainer.n_gpus_per_node=8"),
        ([H100, BUSY], 0.5, None, "FAIL", "GPU 1 (H100) has 10.0 of 80.0 GB"),
        ([OLD], 0.5, None, "FAIL", "compute capability 7.5"),
    ):
        found, said = verdict(machine.gpu_line, gpus, share, wanted)
        assert found == ends and words in said


def free(monkeypatch, gigabytes: float) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=gigabytes * GB))


def test_shared_memory(monkeypatch):
    for gigabytes, ends, words in (
        (0.064, "FAIL", "0.06 GB free in /dev/shm"),  # a container's default
        (2, "note", "--shm-size=16g"),
        (30, "ok", "30.00 GB free"),
    ):
        free(monkeypatch, gigabytes)
        found, said = verdict(machine.shared_memory, Asked())
        assert found == ends and words in said


def test_disk_counts_what_the_run_has_written(monkeypatch, tmp_path):
    run = tmp_path / "runs/qwen3_8b_base/cppo-seed0"
    for gigabytes, each, ends, words in (
        (500, 98 * GB, "ok", "enough for 2 checkpoints of 98 GB"),
        (150, 98 * GB, "FAIL", "2 checkpoints of 98 GB need 196 more"),
        (50, None, "ok", f"50 GB free at {tmp_path}"),
        (5, None, "note", "--recipe or --model says"),
    ):
        free(monkeypatch, gigabytes)
        found, said = verdict(machine.disk, Asked(checkpoint_bytes=each, run_dir=run))
        assert found == ends and words in said
    (run / "checkpoints/global_step_20").mkdir(parents=True)
    (run / "checkpoints/global_step_20/shard").write_bytes(bytes(10**6))
    free(monkeypatch, 0.0001)
    assert verdict(machine.disk, Asked(checkpoint_bytes=5e5, run_dir=run))[0] == "ok"
