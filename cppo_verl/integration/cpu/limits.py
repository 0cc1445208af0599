"""Two sizes of the CPU platform that follow the model: the bucket that carries weights, and vLLM's KV cache.

``conf/platform/cpu.yaml`` leaves both empty, and ``FillLimits`` sets them before Ray starts. A value of the user's own
stays; the start check says when it is too small. On a GPU neither is needed: verl sends a tensor that is larger than
the bucket by itself there, and vLLM takes a share of the GPU's memory.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import psutil
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cppo_verl.integration import cpu
from cppo_verl.launch import sizes

BUCKET = sizes.ROLLOUT + "checkpoint_engine.update_weights_bucket_megabytes"
CACHE = sizes.ROLLOUT + "engine_kwargs.vllm.kv_cache_memory_bytes"
BLOCK_SIZE = sizes.ROLLOUT + "engine_kwargs.vllm.block_size"
LEAST_BUCKET = 64  # MiB
LEAST_CACHE = 256 << 20  # bytes
SHARE = 8  # the cache takes at most this part of the machine's memory: vLLM then runs fewer sequences at once
BLOCK = 128  # tokens, unless BLOCK_SIZE says otherwise: vLLM's CPU engine gives a sequence whole blocks
FLOAT32 = 4
BYTES = {"bfloat16": 2, "float16": 2, "half": 2}  # of a number in the cache; the others take 4


def need(config: DictConfig) -> tuple[int, int, int]:
    """What a composed config's model needs, if it is dense.

    Returns:
        MiB of its largest tensor in float32, tokens of the longest sequence, and bytes of that one in the KV cache; 0
        for what config and config.json do not say.
    """
    path = sizes.model_config(OmegaConf.select(config, "actor_rollout_ref.model.path"))
    try:
        model = json.loads(path.read_text(encoding="utf-8"))  # type: ignore[union-attr]
        model = model.get("text_config", model)
        hidden, heads = int(model["hidden_size"]), int(model["num_attention_heads"])
        head = int(model.get("head_dim") or hidden // heads)
        widest = max(int(model["vocab_size"]), int(model["intermediate_size"]), heads * head)
        cached = 2 * int(model["num_hidden_layers"]) * int(model.get("num_key_value_heads") or heads) * head
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return 0, 0, 0
    parts = [_whole(config, key) for key in (sizes.PROMPT_TOKENS, sizes.RESPONSE_TOKENS)]
    tokens = _whole(config, sizes.ROLLOUT + "max_model_len") or (sum(parts) if all(parts) else 0)
    block = _whole(config, BLOCK_SIZE) or BLOCK
    size = BYTES.get(str(OmegaConf.select(config, sizes.ROLLOUT + "dtype")), FLOAT32)
    return math.ceil(widest * hidden * FLOAT32 / (1 << 20)), tokens, math.ceil(tokens / block) * block * cached * size


def fill(config: DictConfig, memory: int | None = None) -> None:
    """Set what the config leaves empty.

    Args:
        memory: bytes of this machine.
    """
    bucket, _, one = need(config)
    batch = max(_whole(config, sizes.PROMPTS), 1) * max(_whole(config, sizes.N), 1)
    at_once = min(batch, max(_whole(config, sizes.ROLLOUT + "max_num_seqs"), 1))
    most = (memory or psutil.virtual_memory().total) // SHARE
    cache = max(min(at_once * one, most), one)
    for key, value in {BUCKET: max(LEAST_BUCKET, bucket), CACHE: max(LEAST_CACHE, cache)}.items():
        if OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, value, force_add=True)


def problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each of the two that the user set too small for the model; nothing where verl is on a GPU."""
    if not cpu.enabled():
        return
    bucket, tokens, cache = need(config)
    for key, least, why in (
        (BUCKET, bucket, f"is smaller than the model's largest tensor, {bucket} MiB in float32, which travels whole"),
        (CACHE, cache, f"holds no sequence of {tokens} tokens of this model, which vLLM refuses"),
    ):
        given = OmegaConf.select(config, key)
        if isinstance(given, int) and given < least:
            yield f"{key}={given} {why}: set it to {least} or more, or to null to have it follow the model."


class FillLimits(Callback):
    """The platform's config names it under ``hydra.callbacks``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fill the composed config."""
        fill(config)


def _whole(config: DictConfig, key: str) -> int:
    """The whole number under ``key``; 0 where there is none."""
    value = OmegaConf.select(config, key)
    return value if isinstance(value, int) else 0
