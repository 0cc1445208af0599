"""Two sizes of the CPU platform that follow the model: the bucket that carries weights, and vLLM's KV cache.

``conf/platform/cpu.yaml`` leaves both empty, and ``FillLimits`` sets them before Ray starts. A value of the user's own
stays; the start check says when it is too small. On a GPU neither is needed: verl sends a tensor that is larger than
the bucket by itself there, and vLLM takes a share of the GPU's memory.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Need:
    """Of a dense model in a run: MiB of its largest tensor in float32; tokens of the longest sequence, where that is
    known, and its bytes in the KV cache."""

    bucket: int
    tokens: int | None = None
    cache: int = 0


def need(config: DictConfig) -> Need | None:
    """What a composed config's model needs; None where its config.json is not at hand, or says too little."""
    path = sizes.model_config(OmegaConf.select(config, "actor_rollout_ref.model.path"))
    try:
        model = json.loads(path.read_text(encoding="utf-8"))  # type: ignore[union-attr]
        model = model.get("text_config", model)
        hidden, heads = int(model["hidden_size"]), int(model["num_attention_heads"])
        head = int(model.get("head_dim") or hidden // heads)
        widest = max(int(model["vocab_size"]), int(model["intermediate_size"]), heads * head)
        cached = 2 * int(model["num_hidden_layers"]) * int(model.get("num_key_value_heads") or heads) * head
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    bucket, tokens = math.ceil(widest * hidden * FLOAT32 / (1 << 20)), _longest(config)
    if tokens is None:
        return Need(bucket)
    block = OmegaConf.select(config, BLOCK_SIZE) or BLOCK
    size = BYTES.get(str(OmegaConf.select(config, sizes.ROLLOUT + "dtype")), FLOAT32)
    return Need(bucket, tokens, math.ceil(tokens / block) * block * cached * size)


def fill(config: DictConfig, memory: int | None = None) -> None:
    """Set what the config leaves empty.

    Args:
        memory: bytes of this machine.
    """
    needed = need(config) or Need(LEAST_BUCKET)
    most = (memory or psutil.virtual_memory().total) // SHARE
    cache = max(min(_at_once(config) * needed.cache, most), needed.cache)
    for key, value in {BUCKET: max(LEAST_BUCKET, needed.bucket), CACHE: max(LEAST_CACHE, cache)}.items():
        if OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, value, force_add=True)


def problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each of the two that the user set too small for the model; nothing where verl is on a GPU."""
    needed = need(config) if cpu.enabled() else None
    if needed is None:
        return
    bucket, cache = OmegaConf.select(config, BUCKET), OmegaConf.select(config, CACHE)
    if isinstance(bucket, int) and bucket < needed.bucket:
        yield (
            f"{BUCKET}={bucket} is smaller than the model's largest tensor, {needed.bucket} MiB in float32, which has "
            f"to fit at the first exchange of weights: set it to {needed.bucket} or more, or to null to have it follow "
            "the model."
        )
    if isinstance(cache, int) and cache < needed.cache:
        yield (
            f"{CACHE}={cache} holds no sequence of {needed.tokens} tokens of this model, which vLLM refuses: set it to "
            f"{needed.cache} or more, or to null to have it follow the model."
        )


class FillLimits(Callback):
    """The platform's config names it under ``hydra.callbacks``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fill the composed config."""
        fill(config)


def _longest(config: DictConfig) -> int | None:
    """Tokens of the longest sequence."""
    length = OmegaConf.select(config, sizes.ROLLOUT + "max_model_len")
    if length is None:
        parts = [OmegaConf.select(config, key) for key in (sizes.PROMPT_TOKENS, sizes.RESPONSE_TOKENS)]
        length = sum(parts) if all(isinstance(part, int) for part in parts) else None
    return length if isinstance(length, int) else None


def _at_once(config: DictConfig) -> int:
    """Sequences that vLLM may have at once: all of a batch, unless that is more than it is allowed."""
    keys = (sizes.PROMPTS, sizes.N, sizes.ROLLOUT + "max_num_seqs")
    counts = [OmegaConf.select(config, key) for key in keys]
    prompts, samples, most = (count if isinstance(count, int) else 1 for count in counts)
    return max(1, min(prompts * samples, most))
