"""A tiny causal transformer, batched sampling with a KV cache, and the perturbed copy that plays the rollout engine."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Cache:
    """Keys and values of every layer, (batch, heads, capacity, width), filled up to ``length``."""

    def __init__(self, layers: int, batch: int, heads: int, capacity: int, width: int, device: torch.device):
        shape = (layers, batch, heads, capacity, width)
        self.keys, self.values = torch.empty(shape, device=device), torch.empty(shape, device=device)
        self.length = 0


class Block(nn.Module):
    """Pre-norm attention and a two-layer perceptron."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cache: Cache | None, layer: int) -> Tensor:
        """(batch, length, width) -> the same; with a cache, x are the tokens that follow it."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            start, end = cache.length, cache.length + length
            cache.keys[layer, :, :, start:end], cache.values[layer, :, :, start:end] = k, v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Learned positions, ``layers`` blocks, an untied head."""

    def __init__(self, vocabulary: int, capacity: int, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.heads, self.capacity = heads, capacity
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(capacity, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.6 / math.sqrt(width))

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (batch, length, vocabulary) of tokens (batch, length); more than one only into an empty cache."""
        start = cache.length if cache else 0
        x = self.tokens(tokens) + self.positions.weight[start : start + tokens.shape[1]]
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.head(self.norm(x))

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for ``batch`` sequences."""
        weight = self.tokens.weight
        width = weight.shape[1] // self.heads
        return Cache(len(self.blocks), batch, self.heads, self.capacity, width, weight.device)


class Rollout(NamedTuple):
    """tokens (batch, length) int64, and the full log-law each was drawn from, (batch, length, vocabulary)."""

    tokens: Tensor
    log_mu: Tensor


@torch.no_grad()
def sample(model: Transformer, prompts: Tensor, length: int, seed: int, temperature_noise: float = 0.0) -> Rollout:
    """Draw ``length`` tokens after prompts (batch, width), by inverse CDF on a stream of uniforms fixed by the seed.

    Args:
        temperature_noise: each token is drawn at temperature exp(noise * N(0, 1)), an engine that does not compute
            quite the law it was given; ``log_mu`` is the law really used.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, device = prompts.shape[0], prompts.device
    uniforms = torch.rand(length, batch, 1, generator=generator).to(device)
    scale = torch.exp(temperature_noise * torch.randn(length, batch, 1, generator=generator)).to(device)
    cache, tokens, laws = model.new_cache(batch), [], []
    logits = model(prompts, cache)[:, -1]
    for t in range(length):
        law = torch.log_softmax(logits / scale[t], -1)
        token = (law.exp().cumsum(-1) < uniforms[t]).sum(-1, keepdim=True).clamp_max(law.shape[-1] - 1)
        tokens.append(token)
        laws.append(law)
        if t + 1 < length:
            logits = model(token, cache)[:, -1]
    return Rollout(torch.cat(tokens, -1), torch.stack(laws, 1))


def response_log_law(model: Transformer, prompts: Tensor, tokens: Tensor) -> Tensor:
    """log pi(.|s_t) at every response position, (batch, length, vocabulary), differentiable."""
    logits = model(torch.cat([prompts, tokens[:, :-1]], 1))
    return torch.log_softmax(logits[:, prompts.shape[1] - 1 :], -1)


def rollout_engine(model: Transformer, precision: str) -> Transformer:
    """A copy with weights rounded to bf16 or to int8 / int4 (symmetric, a scale a row), or ``exact``.

    Raises:
        ValueError: for another precision.
    """
    engine = copy.deepcopy(model).requires_grad_(False)
    if precision == "exact":
        return engine
    for parameter in engine.parameters():
        if precision == "bf16":
            parameter.copy_(parameter.bfloat16().float())
        elif precision in ("int8", "int4"):
            largest = 127 if precision == "int8" else 7
            scale = parameter.abs().amax(-1, keepdim=True).clamp_min(1e-12) / largest
            parameter.copy_((parameter / scale).round() * scale)
        else:
            raise ValueError(f"precision={precision!r} is not one of exact, bf16, int8, int4")
    return engine
