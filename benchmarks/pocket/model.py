"""A tiny causal transformer, batched sampling from it, and the perturbed copy that plays the rollout engine."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Past = tuple[Tensor, Tensor]  # keys and values of earlier tokens, (batch, heads, length, width of a head)


class Block(nn.Module):
    """Pre-norm attention and a two-layer perceptron."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """x (batch, length, width) -> the same, and keys and values with those of x behind the ``past``."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)))), (k, v)


class Transformer(nn.Module):
    """Learned positions, ``layers`` blocks, an untied head."""

    def __init__(self, vocabulary: int, capacity: int, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(capacity, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.6 / math.sqrt(width))

    def forward(self, tokens: Tensor, past: list[Past] | None = None) -> tuple[Tensor, list[Past]]:
        """Logits (batch, length, vocabulary), and each layer's keys and values; with a ``past`` of one token."""
        start, kept = past[0][0].shape[2] if past else 0, []
        x = self.tokens(tokens) + self.positions.weight[start : start + tokens.shape[1]]
        for layer, block in enumerate(self.blocks):
            x, own = block(x, past[layer] if past else None)
            kept.append(own)
        return self.head(self.norm(x)), kept


@torch.no_grad()
def sample(model: Transformer, prompts: Tensor, length: int, seed: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Draw ``length`` tokens after prompts (batch, width), by inverse CDF on a stream of uniforms fixed by the seed.

    Each is drawn at temperature exp(noise * N(0, 1)): an engine that does not compute quite the law it was given.

    Returns:
        Tokens (batch, length), and the log-law that each was really drawn from, (batch, length, vocabulary).
    """
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(length, len(prompts), 1, generator=generator)
    scale = torch.exp(noise * torch.randn(length, len(prompts), 1, generator=generator))
    token, past, tokens, laws = prompts, None, [], []
    for t in range(length):
        logits, past = model(token, past)
        law = torch.log_softmax(logits[:, -1] / scale[t], -1)
        token = (law.exp().cumsum(-1) < uniforms[t]).sum(-1, keepdim=True).clamp_max(law.shape[-1] - 1)
        tokens.append(token)
        laws.append(law)
    return torch.cat(tokens, -1), torch.stack(laws, 1)


def response_log_law(model: Transformer, prompts: Tensor, tokens: Tensor) -> Tensor:
    """log pi(.|s_t) at every response position, (batch, length, vocabulary), differentiable."""
    logits, _ = model(torch.cat([prompts, tokens[:, :-1]], 1))
    return torch.log_softmax(logits[:, prompts.shape[1] - 1 :], -1)


def rollout_engine(model: Transformer, precision: str) -> Transformer:
    """A copy: ``exact``, or with weights rounded to ``int8`` or ``int4`` (symmetric, a scale a row)."""
    engine = copy.deepcopy(model).requires_grad_(False)
    if precision != "exact":
        largest = {"int8": 127, "int4": 7}[precision]
        for parameter in engine.parameters():
            scale = parameter.abs().amax(-1, keepdim=True).clamp_min(1e-12) / largest
            parameter.copy_((parameter / scale).round() * scale)
    return engine
