"""What is said of the machine, and what is not."""

from pathlib import Path

import pytest

from cppo_verl.selftest import gpus, machine


def test_this_machine_on_the_cpu_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    here = machine.look(tmp_path / "not" / "there" / "yet")
    assert (here.device, here.ranks) == ("cpu", 2)
    assert here.host_gb > 0.1 and here.disk_gb > 0.1
    assert {"system", "processor", "Python", "verl", "torch", "source", "VERL_PLATFORM"} <= set(here.facts)
    assert not any(str(Path.home()) in text for text in here.facts.values())


def test_a_machine_without_a_device(monkeypatch, tmp_path):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    here = machine.look(tmp_path)
    assert (here.device, here.ranks, here.facts["GPUs"]) == ("", 0, "none")


def test_gpus_as_torch_shows_them(monkeypatch):
    """What torch says of two GPUs, made up: only a machine with some can show the rest."""
    import torch

    class Properties:
        name, total_memory = "Made-up 9000", 80e9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    found = gpus.look()
    assert found["facts"]["GPUs"] == "Made-up 9000, 80 GB; Made-up 9000, 80 GB"
    assert (found["facts"]["NCCL"], found["facts"]["driver"]) == ("2.27.5", "unknown")
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(gpus, "seen", lambda: found)
    here = machine.look(Path())
    assert (here.device, here.ranks, here.gpu_gb) == ("cuda", 2, 80)


@pytest.mark.parametrize(
    ("prints", "used"), [("1024\n40960\n", [1.073741824, 42.94967296]), ("[N/A]\n", []), ("", []), (None, [])]
)
def test_memory_in_use_by_nvidia_smi(prints, used, monkeypatch, tmp_path):
    if prints is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<END\n{prints}END\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus.used() == used


def test_secrets_and_the_home_folder_are_taken_out(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-3b9d52")
    monkeypatch.setenv("PLAIN", "harmless")
    said = machine.clean(f"key canary-3b9d52 and harmless in {Path.home()}/runs")
    assert said == "key *** and harmless in ~/runs"


def test_packages_are_looked_for_and_not_imported():
    assert machine.has_package("json") and machine.has_package("json.decoder")
    assert not machine.has_package("no_such_package") and not machine.has_package("no_such_package.part")


def test_the_code_has_a_hash_of_its_own_files(monkeypatch, tmp_path):
    before = machine.code.__wrapped__()
    assert before == machine.code.__wrapped__()
    (tmp_path / "cppo_verl").mkdir()
    (tmp_path / "cppo_verl/a.py").write_text("1")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    other = machine.code.__wrapped__()
    (tmp_path / "cppo_verl/a.py").write_text("2")
    assert len({before, other, machine.code.__wrapped__()}) == 3
