"""Shapes of the paper's models, as published in their config.json, and what follows from them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A Qwen3 decoder, named as in config.json. Counts are of parameters.

    ``inner`` is the width of the MLP, or of one of ``experts``, of which a token visits ``chosen``; a dense model has 0
    and 1. ``tied``: embedding and LM head are one matrix.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    tied: bool
    experts: int = 0
    chosen: int = 1
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def query(self) -> int:  # width of all query heads
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:  # width of all keys, or of all values
        return self.kv_heads * self.head_dim

    @property
    def embedding(self) -> int:  # and of the LM head where it is another matrix
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        return self.layer_with(max(self.experts, 1))

    def layer_with(self, experts: int) -> int:
        """Of one decoder layer of which ``experts`` MLPs count, with attention, norms and router."""
        attention = 2 * self.hidden * (self.query + self.key_value) + 2 * self.head_dim
        return attention + 2 * self.hidden + self.hidden * self.experts + experts * 3 * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def active(self) -> int:
        """Those in a matrix product for one token: chosen experts, LM head, no embedding."""
        return self.layers * self.layer_with(self.chosen) + self.embedding

    @property
    def cache_bytes(self) -> int:
        """KV cache of one token in bf16."""
        return 2 * 2 * self.layers * self.key_value


SHAPES = {
    "qwen3_1p7b": Shape(2048, 28, 16, 8, 6144, tied=True),
    "qwen3_1p7b_base": Shape(2048, 28, 16, 8, 6144, tied=True),
    "qwen3_8b_base": Shape(4096, 36, 32, 8, 12288, tied=False),
    "qwen3_30b_a3b_base": Shape(2048, 48, 32, 4, 768, tied=False, experts=128, chosen=8),
}
PAPER_NAMES = dict(zip(SHAPES, ("Qwen3-1.7B", "Qwen3-1.7B-Base", "Qwen3-8B-Base", "Qwen3-30B-A3B-Base"), strict=True))


def shape_of(name: str, model_path: str) -> Shape:
    """The shape declared for ``name``, or that of ``model_path``/config.json where such a file exists.

    Raises:
        ValueError: when neither is known.
    """
    file = Path(os.path.expanduser(model_path)) / "config.json"
    if not file.is_file():
        if name not in SHAPES:
            known = ", ".join(SHAPES)
            raise ValueError(f"NAME={name!r}: no such model; there are {known} (or set MODEL_PATH to a folder)")
        return SHAPES[name]
    config = json.loads(file.read_text(encoding="utf-8"))
    experts = config.get("num_experts") or config.get("num_local_experts") or 0  # transformers 5 renames it
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        inner=config["moe_intermediate_size"] if experts else config["intermediate_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        experts=experts,
        chosen=config["num_experts_per_tok"] if experts else 1,
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        vocabulary=config["vocab_size"],
    )
