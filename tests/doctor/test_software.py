"""What is said of packages that are missing, of other versions, or broken."""

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from cppo_verl.doctor import software
from cppo_verl.doctor.verdicts import Asked, Note, Trouble


def pretend(monkeypatch, **versions: str | None) -> None:
    """Let the metadata of the packages named say another version, or that they are not installed."""
    real = metadata.version

    def version(name: str) -> str:
        found = versions.get(name.replace("-", "_"), real)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found if isinstance(found, str) else real(name)

    monkeypatch.setattr(software.metadata, "version", version)


def test_versions(monkeypatch):
    assert "verl 0.9.1" in software.versions(Asked())
    for versions, words in (
        ({"transformers": "5.3.0"}, r"transformers is 5.3.0 \(pip install 'transformers.*5.5.3"),  # verl's own image
        ({"math_verify": None}, r"math-verify is not installed \(pip install 'math-verify'\)"),
        ({"verl": "0.10.0"}, r"verl is 0.10.0 \(pip install 'verl<0.9.2,>=0.9.0'\)"),
    ):
        pretend(monkeypatch, **versions)
        with pytest.raises(Trouble, match=words):
            software.versions(Asked())


def test_flash_attention_that_is_missing(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "")
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # cannot be imported, whatever lies on the path
    with pytest.raises(Note, match=r"flash_attention_2 cannot be used .*ATTN=auto.*docs/gpu.md"):
        software.attention(Asked())
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert software.attention(Asked()) == "sdpa, which +platform=cpu sets"


def test_a_vllm_without_what_the_hooks_need(monkeypatch):
    monkeypatch.setattr(software, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.31.0"))
    monkeypatch.setitem(sys.modules, "verl.third_party.vllm", SimpleNamespace(vllm_version="0.31.0"))
    monkeypatch.setitem(sys.modules, "cppo_verl.integration.topk.server", SimpleNamespace())
    with pytest.raises(Note, match="vLLM 0.31.0 is outside"):
        software.vllm(Asked())
    monkeypatch.setitem(sys.modules, "cppo_verl.integration.topk.server", None)
    with pytest.raises(Trouble, match="estimator=topk needs .* pip install vllm==0.24.0"):
        software.vllm(Asked())
