"""Two sizes of the CPU platform that follow the model: the bucket that carries weights, and vLLM's KV cache.

``conf/platform/cpu.yaml`` leaves both empty, and ``FillLimits`` sets them before Ray starts; a value of the user's own
stays. On a GPU neither is needed: verl sends a tensor that is larger than the bucket by itself there, and vLLM takes a
share of the GPU's memory.
"""

import json
import math
from typing import Any

import psutil
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cppo_verl.launch import sizes

BUCKET = sizes.ROLLOUT + "checkpoint_engine.update_weights_bucket_megabytes"
CACHE = sizes.ROLLOUT + "engine_kwargs.vllm.kv_cache_memory_bytes"
LEAST_BUCKET = 64  # MiB
LEAST_CACHE = 256 << 20  # bytes
SHARE = 8  # the cache takes at most this part of the machine's memory: vLLM then runs fewer sequences at once
BLOCK_SIZE, BLOCK = "engine_kwargs.vllm.block_size", 128  # tokens: vLLM's CPU engine gives a sequence whole blocks
FLOAT32 = 4  # bytes


def need(config: DictConfig) -> tuple[int, int]:
    """What a composed config's model needs, if it is dense.

    Returns:
        MiB of its largest tensor in float32, and bytes of the longest sequence in the KV cache; 0 where its config.json
        is not at hand or does not say.
    """
    path = sizes.model_config(config.actor_rollout_ref.model.path)
    try:
        model = json.loads(path.read_text(encoding="utf-8"))  # type: ignore[union-attr]
        model = model.get("text_config", model)
        hidden, heads = int(model["hidden_size"]), int(model["num_attention_heads"])
        head = int(model.get("head_dim") or hidden // heads)
        widest = max(int(model["vocab_size"]), int(model["intermediate_size"]), heads * head)
        cached = 2 * int(model["num_hidden_layers"]) * int(model.get("num_key_value_heads") or heads) * head
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return 0, 0
    data, rollout = config.data, config.actor_rollout_ref.rollout
    tokens = rollout.max_model_len or data.max_prompt_length + data.max_response_length
    block = OmegaConf.select(rollout, BLOCK_SIZE) or BLOCK
    number = 2 if rollout.dtype in ("bfloat16", "float16", "half") else FLOAT32
    return math.ceil(widest * hidden * FLOAT32 / (1 << 20)), math.ceil(tokens / block) * block * cached * number


def fill(config: DictConfig, memory: int | None = None) -> None:
    """Set what the config leaves empty.

    Args:
        memory: bytes of this machine.
    """
    bucket, one = need(config)
    rollout = config.actor_rollout_ref.rollout
    at_once = min(config.data.train_batch_size * rollout.n, rollout.max_num_seqs)
    most = (memory or psutil.virtual_memory().total) // SHARE
    cache = max(min(at_once * one, most), one)
    for key, value in {BUCKET: max(LEAST_BUCKET, bucket), CACHE: max(LEAST_CACHE, cache)}.items():
        if OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, value, force_add=True)


class FillLimits(Callback):
    """The platform's config names it under ``hydra.callbacks``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fill the composed config."""
        fill(config)
