"""The CPU platform's sizes that follow the model: what is filled in, and what is refused."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.integration.cpu import limits
from cppo_verl.integration.cpu.limits import BUCKET, CACHE

# SmolLM2-135M: 49,152 words of 576 numbers are 108 MiB; 30 layers, 3 key-value heads of 64
SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
SMOLLM2 |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
A_TOKEN = 2 * 30 * 3 * 64 * 4  # bytes in float32
TINY = SMOLLM2 | {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
LEAST = (64, 256 << 20)
IN_PARTS = "data.max_prompt_length=100 data.max_response_length=100"
ROLLOUT = "actor_rollout_ref.rollout."
RUN = ["data.train_batch_size=16", f"{ROLLOUT}n=8", f"{ROLLOUT}max_model_len=88"]  # 128 sequences, a block each


def composed(folder: Path, model, *overrides: str):
    (folder / "config.json").write_text(json.dumps(model))
    return presets.compose("cppo", ["+platform=cpu", *RUN, f"actor_rollout_ref.model.path={folder}", *overrides])


@pytest.mark.parametrize(
    ("model", "overrides", "memory", "filled"),
    [
        (SMOLLM2, "", 24, (108, 128 * 128 * A_TOKEN)),
        (SMOLLM2, f"+{ROLLOUT}engine_kwargs.vllm.block_size=32", 24, (108, 128 * 96 * A_TOKEN)),
        (SMOLLM2, f"{ROLLOUT}dtype=bfloat16 {ROLLOUT}max_num_seqs=100", 24, (108, 100 * 128 * A_TOKEN // 2)),
        (SMOLLM2, f"{ROLLOUT}max_model_len=null {IN_PARTS}", 24, (108, 128 * 256 * A_TOKEN)),
        # a small machine: a smaller cache, but room for one sequence
        (SMOLLM2, "", 4, (108, (4 << 30) // 8)),
        (SMOLLM2, f"{ROLLOUT}max_model_len=32768", 1, (108, 32768 * A_TOKEN)),
        # the queries are wider than all else, 16,384 heads of 32 numbers
        (TINY | {"head_dim": 32, "num_attention_heads": 1 << 14, "num_key_value_heads": 1}, "", 24, (128, LEAST[1])),
        (SMOLLM2, f"{BUCKET}=200 {CACHE}=1000000000", 24, (200, 1000000000)),  # the user's own
        # configs that say too little
        *(
            (little, "", 24, LEAST)
            for little in ({}, [], {"hidden_size": "wide"}, SMOLLM2 | {"num_attention_heads": 0})
        ),
    ],
)
def test_both_follow_model_lengths_and_machine(tmp_path, model, overrides: str, memory: int, filled):
    config = composed(tmp_path, model, *overrides.split())
    limits.fill(config, memory << 30)
    assert tuple(OmegaConf.select(config, key) for key in (BUCKET, CACHE)) == filled


def test_too_small_a_value_is_named_with_the_key_that_helps(tmp_path, monkeypatch):
    def said(*overrides: str, platform: str = "cpu") -> str:
        monkeypatch.setenv("VERL_PLATFORM", platform)
        return "\n".join(checks.here_problems(composed(tmp_path, SMOLLM2, *overrides)))

    assert not said()  # empty ones follow the model
    assert not said(f"{BUCKET}=108", f"{CACHE}={128 * A_TOKEN}")
    small = said(f"{BUCKET}=107", f"{CACHE}={128 * A_TOKEN - 1}")
    assert f"{BUCKET}=107 is smaller than the model's largest tensor, 108 MiB in float32" in small
    assert f"{CACHE}={128 * A_TOKEN - 1} holds no sequence of 88 tokens of this model" in small
    assert f"set it to {128 * A_TOKEN} or more" in small
    assert not said(f"{BUCKET}=107", platform="")  # a GPU sends large tensors by themselves
