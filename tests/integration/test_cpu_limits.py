"""The CPU platform's sizes that follow the model: what is filled in, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.integration.cpu import limits
from cppo_verl.integration.cpu.limits import BUCKET, CACHE, Shape
from tests import ROOT

# SmolLM2-135M: 49,152 words of 576 numbers are 108 MiB; 30 layers, 3 key-value heads of 64
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
A_TOKEN = 2 * 30 * 3 * 64 * 4  # bytes in float32
TINY = SMOLLM2 | {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
RUN = ["data.train_batch_size=16", "actor_rollout_ref.rollout.n=8", "actor_rollout_ref.rollout.max_model_len=88"]


def model(folder: Path, config: dict = SMOLLM2) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return f"actor_rollout_ref.model.path={folder}"


def composed(*overrides: str):
    return presets.compose("cppo", ["+platform=cpu", *RUN, *overrides])


def filled(*overrides: str, memory: int = 24 << 30) -> tuple[int, int]:
    config = composed(*overrides)
    limits.fill(config, memory)
    return config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes, (
        config.actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes
    )


def said(monkeypatch: pytest.MonkeyPatch, *overrides: str, platform: str = "cpu") -> str:
    monkeypatch.setenv("VERL_PLATFORM", platform)
    return "\n".join(checks.here_problems(composed(*overrides)))


def test_the_shape_of_a_model(tmp_path):
    model(tmp_path / "m")
    shape = limits.shape_of(tmp_path / "m/config.json")
    assert shape == Shape(largest=49152 * 576, cached=A_TOKEN // 4)
    assert shape.bucket_megabytes == 108


@pytest.mark.parametrize("config", [{}, [], {"hidden_size": "wide"}, SMOLLM2 | {"num_attention_heads": 0}])
def test_a_config_that_says_too_little_has_no_shape(tmp_path, config):
    model(tmp_path / "m", config)
    assert limits.shape_of(tmp_path / "m/config.json") is None
    assert limits.shape_of(tmp_path / "none.json") is None
    assert filled(model(tmp_path / "m", config)) == (64, 256 << 20)


def test_a_model_with_wide_layers_is_measured_by_them(tmp_path):
    model(tmp_path / "m", TINY | {"intermediate_size": 400, "head_dim": 32, "num_attention_heads": 16})
    assert limits.shape_of(tmp_path / "m/config.json").largest == 512 * 64  # queries: 16 heads of 32


def test_both_follow_the_model_and_the_lengths(tmp_path):
    # 128 sequences at once, each of one block of 128 tokens
    assert filled(model(tmp_path / "m")) == (108, 128 * 128 * A_TOKEN)
    block = "+actor_rollout_ref.rollout.engine_kwargs.vllm.block_size=32"
    assert filled(model(tmp_path / "m"), block) == (108, 128 * 96 * A_TOKEN)
    half = "actor_rollout_ref.rollout.dtype=bfloat16"
    assert filled(model(tmp_path / "m"), half) == (108, 128 * 128 * A_TOKEN // 2)
    few = "actor_rollout_ref.rollout.max_num_seqs=64"
    assert filled(model(tmp_path / "m"), few) == (108, 64 * 128 * A_TOKEN)
    lengths = [
        "actor_rollout_ref.rollout.max_model_len=null",
        "data.max_prompt_length=100",
        "data.max_response_length=100",
    ]
    assert filled(model(tmp_path / "m"), *lengths) == (108, 128 * 256 * A_TOKEN)


def test_a_small_machine_gets_a_smaller_cache_that_holds_a_sequence(tmp_path):
    assert filled(model(tmp_path / "m"), memory=4 << 30)[1] == (4 << 30) // 8
    long = "actor_rollout_ref.rollout.max_model_len=32768"
    assert filled(model(tmp_path / "m"), long, memory=1 << 30)[1] == 32768 * A_TOKEN


def test_a_tiny_model_gets_what_it_always_got(tmp_path):
    assert filled(model(tmp_path / "m", TINY)) == (64, 256 << 20)


def test_values_of_the_users_own_stay(tmp_path):
    assert filled(model(tmp_path / "m"), f"{BUCKET}=200", f"{CACHE}=1000000000") == (200, 1000000000)


def test_too_small_a_value_is_named_with_the_key_that_helps(tmp_path, monkeypatch):
    path = model(tmp_path / "m")
    assert not said(monkeypatch, path)  # empty ones follow the model
    assert not said(monkeypatch, path, f"{BUCKET}=108", f"{CACHE}={128 * A_TOKEN}")
    small = said(monkeypatch, path, f"{BUCKET}=107", f"{CACHE}={128 * A_TOKEN - 1}")
    assert f"{BUCKET}=107 is smaller than the model's largest tensor, 108 MiB in float32" in small
    assert f"{CACHE}={128 * A_TOKEN - 1} holds no sequence of 88 tokens of this model" in small
    assert f"set it to {128 * A_TOKEN} or more" in small
    assert not said(monkeypatch, path, f"{BUCKET}=107", platform="")  # a GPU sends large tensors by themselves


@pytest.mark.stack
def test_the_stock_command_line_stops_before_ray(tmp_path):
    """verl's own entry point: the callbacks of preset and platform both run, and nothing is started."""
    overrides = ["+trust_region=cppo", "+platform=cpu", *RUN, model(tmp_path / "m"), f"{BUCKET}=64"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides, f"hydra.run.dir={tmp_path}/hydra"]
    values = {**os.environ, "VERL_PLATFORM": "cpu", "HYDRA_FULL_ERROR": "0"}
    done = subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"{BUCKET}=64 is smaller than the model's largest tensor" in done.stderr
    assert "ray" not in done.stdout.lower()
