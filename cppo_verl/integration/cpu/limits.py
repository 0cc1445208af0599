"""Two sizes of the CPU platform that follow the model: the bucket that carries weights, and vLLM's KV cache.

``conf/platform/cpu.yaml`` leaves both empty, and ``FillLimits`` sets them before Ray starts. A value of the user's own
stays; the start check says when it is too small. On a GPU neither is needed: verl sends a tensor that is larger than
the bucket by itself there, and vLLM takes a share of the GPU's memory.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cppo_verl.integration import cpu
from cppo_verl.launch import sizes

BUCKET = sizes.ROLLOUT + "checkpoint_engine.update_weights_bucket_megabytes"
CACHE = sizes.ROLLOUT + "engine_kwargs.vllm.kv_cache_memory_bytes"
MODEL_LENGTH, MOST_AT_ONCE = sizes.ROLLOUT + "max_model_len", sizes.ROLLOUT + "max_num_seqs"
LEAST_BUCKET = 64  # MiB
LEAST_CACHE = 256 << 20
SHARE = 8  # the cache takes at most this part of the machine's memory: vLLM then runs fewer sequences at once
BLOCK = 128  # tokens, unless the key below says otherwise: vLLM's CPU engine gives a sequence whole blocks
BLOCK_SIZE = sizes.ROLLOUT + "engine_kwargs.vllm.block_size"
FLOAT32 = 4
BYTES = {"bfloat16": 2, "float16": 2, "half": 2}  # of a number in the cache; the others take 4


@dataclass(frozen=True)
class Shape:
    """Of a dense model: entries of its largest tensor, and numbers that a token leaves in the KV cache."""

    largest: int
    cached: int

    @property
    def bucket_megabytes(self) -> int:
        """MiB that hold the largest tensor in float32."""
        return math.ceil(self.largest * FLOAT32 / (1 << 20))


def shape_of(config_json: Path) -> Shape | None:
    """From a model's config.json; None where there is none, or one that says too little."""
    try:
        config = json.loads(config_json.read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        key_value = int(config.get("num_key_value_heads") or heads)
        widest = max(int(config["vocab_size"]), int(config["intermediate_size"]), heads * head)
        return Shape(widest * hidden, 2 * int(config["num_hidden_layers"]) * key_value * head)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class Sequence:
    """The longest one: tokens, and tokens of a block; vLLM's name for the type of its numbers."""

    tokens: int
    block: int
    dtype: str

    def bytes(self, shape: Shape) -> int:
        """Of the KV cache, for one such sequence."""
        return math.ceil(self.tokens / self.block) * self.block * shape.cached * BYTES.get(self.dtype, FLOAT32)


def fill(config: DictConfig, memory: int | None = None) -> None:
    """Set what the config leaves empty.

    Args:
        memory: bytes of this machine.
    """
    shape = _shape(config)
    found = {BUCKET: LEAST_BUCKET, CACHE: LEAST_CACHE}
    if shape is not None:
        found[BUCKET] = max(LEAST_BUCKET, shape.bucket_megabytes)
        longest = _longest(config)
        if longest is not None:
            one, most = longest.bytes(shape), (memory or psutil.virtual_memory().total) // SHARE
            found[CACHE] = max(LEAST_CACHE, min(_at_once(config) * one, most), one)
    for key, value in found.items():
        if _is_empty(config, key):
            OmegaConf.update(config, key, value, force_add=True)


def problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each of the two that the user set too small for the model; nothing where verl is on a GPU."""
    shape = _shape(config) if cpu.enabled() else None
    if shape is None:
        return
    bucket, cache = OmegaConf.select(config, BUCKET), OmegaConf.select(config, CACHE)
    if isinstance(bucket, int) and bucket < shape.bucket_megabytes:
        yield (
            f"{BUCKET}={bucket} is smaller than the model's largest tensor, {shape.bucket_megabytes} MiB in float32, "
            f"which has to fit at the first exchange of weights: set it to {shape.bucket_megabytes} or more, or to "
            "null to have it follow the model."
        )
    longest = _longest(config)
    if isinstance(cache, int) and longest is not None and cache < longest.bytes(shape):
        yield (
            f"{CACHE}={cache} holds no sequence of {longest.tokens} tokens of this model, which vLLM refuses: set it "
            f"to {longest.bytes(shape)} or more, or to null to have it follow the model."
        )


class FillLimits(Callback):
    """The platform's config names it under ``hydra.callbacks``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fill the composed config."""
        fill(config)


def _shape(config: DictConfig) -> Shape | None:
    path = sizes.model_config(OmegaConf.select(config, "actor_rollout_ref.model.path"))
    return None if path is None else shape_of(path)


def _longest(config: DictConfig) -> Sequence | None:
    read = OmegaConf.select
    length = read(config, MODEL_LENGTH)
    if length is None:
        parts = [read(config, key) for key in (sizes.PROMPT_TOKENS, sizes.RESPONSE_TOKENS)]
        length = sum(parts) if all(isinstance(part, int) for part in parts) else None
    if not isinstance(length, int):
        return None
    return Sequence(length, read(config, BLOCK_SIZE) or BLOCK, str(read(config, sizes.ROLLOUT + "dtype")))


def _at_once(config: DictConfig) -> int:
    """Sequences that vLLM may have at once: all of a batch, unless that is more than it is allowed."""
    counts: Mapping[str, Any] = {key: OmegaConf.select(config, key) for key in (sizes.PROMPTS, sizes.N, MOST_AT_ONCE)}
    prompts, samples, most = (count if isinstance(count, int) else 1 for count in counts.values())
    return max(1, min(prompts * samples, most))


def _is_empty(config: DictConfig, key: str) -> bool:
    return OmegaConf.select(config, key) is None
