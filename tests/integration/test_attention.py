"""The attention that a run would use, found by importing it: installed, broken, or standing in."""

import functools
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest

from cppo_verl import presets
from cppo_verl.integration import attention
from cppo_verl.launch import sizes
from tests import ROOT
from tests.integration.test_checks import refused

SDPA = f"++{sizes.ATTENTION}=sdpa"
GAE = "algorithm.adv_estimator=gae"
KERNELS = find_spec("kernels") is not None


@pytest.fixture
def flash_attn(monkeypatch) -> ModuleType:
    """A module of that name, as far as transformers looks at it."""
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    module.flash_attn_varlen_func = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)


refusal = functools.partial(refused, "cppo", here=True)


def test_verls_own_default_needs_flash_attention(monkeypatch, tmp_path):
    said = refusal()
    assert f"{sizes.ATTENTION}=flash_attention_2 cannot be used" in said and "(No module named 'flash_attn'" in said
    assert f"++{sizes.ATTENTION}=sdpa" in said and "docs/gpu.md" in said
    assert KERNELS or "the hub's kernel: the package kernels is not installed" in said
    assert "(No module named 'flash_attn_interface'" in refusal(f"++{sizes.ATTENTION}=flash_attention_3")
    assert refusal(here=False) == ""  # a config is no worse for where it is looked at
    (tmp_path / "flash_attn.py").write_text("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c1')")
    monkeypatch.syspath_prepend(tmp_path)  # built for another torch
    assert "(flash_attn_2_cuda.so: undefined symbol: _ZN3c1)" in refusal()


def test_a_critic_needs_it_whatever_the_config_says(monkeypatch):
    said = refusal(SDPA, GAE)
    assert "a critic (algorithm.adv_estimator=gae" in said and "No module named 'flash_attn'" in said
    assert refusal(SDPA, "critic.enable=true") and not refusal(SDPA, GAE, "critic.enable=false")
    monkeypatch.setenv("VERL_PLATFORM", "cpu")  # whose critic takes the attention that it is told
    assert refusal(SDPA, GAE) == ""


def test_a_flash_attention_that_imports_is_accepted(flash_attn):
    assert refusal() == refusal(GAE) == refusal(f"{sizes.SP}=2") == ""
    del flash_attn.flash_attn_varlen_func  # flash-attn-4 installs a package of the same name
    assert "flash_attn_varlen_func" in refusal()


@pytest.mark.skipif(not KERNELS, reason="the package kernels belongs to the GPU environment")
def test_the_hubs_kernel_in_place_of_the_package(tmp_path):
    """None in the hub's cache, and one for this torch, as ``kernels`` finds it."""
    from kernels.utils import build_variant

    names = ("flash_attention_2", "kernels-community/flash-attn2")
    source = f"from cppo_verl.integration.attention import missing; print(*map(missing, {names}), sep='\\n')"

    def reasons() -> list[str]:
        """In a process of its own: transformers keeps what it has found."""
        values = {**os.environ, "HF_HUB_OFFLINE": "1", "KERNELS_CACHE": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", source], env=values, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.splitlines()[-len(names) :]

    said = "No module named 'flash_attn'; the hub's kernel: An error occurred while trying to load"
    assert said in reasons()[0]
    repo = tmp_path / "models--kernels-community--flash-attn2"
    kernel = repo / "snapshots/abc/build" / build_variant()
    kernel.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc")
    (kernel / "__init__.py").write_text("def flash_attn_varlen_func(*args, **kwargs): pass")
    assert reasons() == ["None", "None"]


def test_other_engines_choose_their_attention_elsewhere():
    config = presets.compose("cppo", [])
    config.actor_rollout_ref.actor.strategy = "megatron"
    assert attention.in_force(config) is None and list(attention.here_problems(config)) == []


def test_heads_of_a_local_model_are_looked_at(tmp_path):
    (tmp_path / "config.json").write_text('{"num_attention_heads": 6, "num_key_value_heads": 2}')
    said = refusal(f"{sizes.SP}=4", f"actor_rollout_ref.model.path={tmp_path}", here=False)
    assert f"{sizes.SP}=4 with a model of 6 attention heads and 2 key-value heads" in said
