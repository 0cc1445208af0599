"""What is said of the machine, and what is not."""

from pathlib import Path

import pytest

from cppo_verl.selftest import machine


def test_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    here = machine.look(tmp_path / "not" / "there" / "yet")
    assert (here.device, here.ranks) == ("cpu", 2)
    assert here.host_gb > 0.1 and here.disk_gb > 0.1
    assert {"system", "processor", "Python", "verl", "torch", "source", "VERL_PLATFORM"} <= set(here.facts)
    assert not any(str(Path.home()) in text for text in here.facts.values())
    assert machine.has_package("json.decoder") and not machine.has_package("no_such_package.part")


def test_gpus_as_torch_shows_them(monkeypatch, tmp_path):
    """What torch says of two GPUs, made up: only a machine with some can show the rest."""
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace\n"
        "made_up = SimpleNamespace(name='Made-up 9000', total_memory=80e9)\n"
        "cuda = SimpleNamespace(device_count=lambda: 2, get_device_properties=lambda index: made_up)\n"
    )
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    here = machine.look(Path())
    assert (here.device, here.ranks, here.gpu_gb) == ("cuda", 2, 80)
    assert here.facts["GPUs"] == "Made-up 9000, 80 GB; Made-up 9000, 80 GB"
    (tmp_path / "torch.py").write_text("raise ImportError")
    assert machine.look(Path()).device == ""


@pytest.mark.parametrize(
    ("prints", "used"), [("1024\n40960\n", [1.073741824, 42.94967296]), ("[N/A]\n", []), ("", []), (None, [])]
)
def test_memory_in_use_by_nvidia_smi(prints, used, monkeypatch, tmp_path):
    if prints is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<END\n{prints}END\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.gpu_memory_in_use() == used


def test_the_code_has_a_hash_of_its_own_files(monkeypatch, tmp_path):
    (tmp_path / "cppo_verl").mkdir()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    hashes = set()
    for text in ("1", "2", "1"):
        (tmp_path / "cppo_verl/a.py").write_text(text)
        hashes.add(machine.code.__wrapped__())
    assert len(hashes) == 2
