"""The CPU platform's sizes that follow the model: what is filled in."""

import json

import pytest
from omegaconf import OmegaConf

from cppo_verl import presets
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


@pytest.mark.parametrize(
    ("model", "overrides", "memory", "filled"),
    [
        (SMOLLM2, "", 24, (108, 128 * 128 * A_TOKEN)),
        (SMOLLM2, "", 4, (108, (4 << 30) // 8)),  # a small machine: a smaller cache,
        (SMOLLM2, f"{ROLLOUT}max_num_seqs=100 {ROLLOUT}max_model_len=null {IN_PARTS}", 24, (108, 100 * 256 * A_TOKEN)),
        (SMOLLM2, f"{ROLLOUT}max_model_len=32768", 1, (108, 32768 * A_TOKEN)),  # but room for one sequence
        # the queries are wider than all else, 16,384 heads of 32 numbers
        (TINY | {"head_dim": 32, "num_attention_heads": 1 << 14, "num_key_value_heads": 1}, "", 24, (128, LEAST[1])),
        (SMOLLM2, f"{BUCKET}=200 {CACHE}=1000000000", 24, (200, 1000000000)),  # the user's own
        ({}, "", 24, LEAST),  # says too little
    ],
)
def test_both_follow_model_lengths_and_machine(tmp_path, model, overrides: str, memory: int, filled):
    (tmp_path / "config.json").write_text(json.dumps(model))
    path = f"actor_rollout_ref.model.path={tmp_path}"
    config = presets.compose("cppo", ["+platform=cpu", *RUN, path, *overrides.split()])
    limits.fill(config, memory << 30)
    assert tuple(OmegaConf.select(config, key) for key in (BUCKET, CACHE)) == filled
