"""Random responses for the rules, the same on every machine: float64 on the CPU, then rounded to what a device gets."""

from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY = 64  # of the small policies that top-K batches are drawn from


@dataclass(frozen=True)
class TopK:
    """mu's top-K at each token, the sampled token left out: both (rows, width, k)."""

    log_pi: Tensor
    log_mu: Tensor


@dataclass(frozen=True)
class Batch:
    """What a loss gets: (rows, width) tensors on the CPU, ``mask`` bool, and the top-K where the batch has one."""

    log_prob: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mask: Tensor
    topk: TopK | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The same on a device, floating tensors in ``dtype``."""

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype or x.dtype)

        top = self.topk and TopK(move(self.topk.log_pi), move(self.topk.log_mu))
        log_prob, old_log_prob, advantages = map(move, (self.log_prob, self.old_log_prob, self.advantages))
        return Batch(log_prob, old_log_prob, advantages, self.mask.to(device), top)


def binary_batch(rows: int, width: int, seed: int = 0) -> Batch:
    """Half of the tokens confident (p near 1); pi's drift from mu differs by row, 0.003 to 1 in the log-ratio."""
    random = torch.Generator().manual_seed(seed)
    shape = (rows, width)
    confident = -(10.0 ** _uniform(random, shape, -5, -1))
    unsure = -_exponential(random, shape, 1.5) - 1e-4
    old_log_prob = torch.where(_uniform(random, shape) < 0.5, confident, unsure)
    drift = 10.0 ** _uniform(random, (rows, 1), -2.5, 0)
    scaled = old_log_prob * (drift * _normal(random, shape)).exp() + drift * _normal(random, shape)
    return Batch(scaled.clamp_max(-1e-7), old_log_prob, _advantages(random, rows, width), _mask(random, rows, width))


def topk_batch(rows: int, width: int, k: int, seed: int = 0) -> Batch:
    """Tokens sampled from small policies mu, flat to peaked, and pi some way off."""
    random = torch.Generator().manual_seed(seed)
    peaked = 10.0 ** _uniform(random, (rows, width, 1), -0.3, 0.8)
    logits = peaked * _normal(random, (rows, width, VOCABULARY))
    drift = 10.0 ** _uniform(random, (rows, 1, 1), -2.5, -0.2)
    log_mu, log_pi = logits.log_softmax(-1), (logits + drift * _normal(random, logits.shape)).log_softmax(-1)
    sampled = torch.multinomial(log_mu.exp().view(-1, VOCABULARY), 1, generator=random).view(rows, width, 1)
    listed = log_mu.topk(k).indices
    absent = listed == sampled
    top = TopK(log_pi.gather(-1, listed), log_mu.gather(-1, listed).masked_fill(absent, -torch.inf))
    old_log_prob, log_prob = (x.gather(-1, sampled).squeeze(-1).clamp_max(-1e-7) for x in (log_mu, log_pi))
    return Batch(log_prob, old_log_prob, _advantages(random, rows, width), _mask(random, rows, width), top)


def _advantages(random: torch.Generator, rows: int, width: int) -> Tensor:
    """One a response; every tenth is 0."""
    values = _normal(random, (rows, 1))
    values[::10] = 0
    return values.expand(rows, width).contiguous()


def _mask(random: torch.Generator, rows: int, width: int) -> Tensor:
    """Padding on either side, holes in every second row; one row full, one empty, one of a single token."""
    ends = torch.randint(0, width + 1, (rows, 2), generator=random).sort(-1).values
    column = torch.arange(width)
    mask = (column >= ends[:, :1] // 4) & (column < (ends[:, 1:] + width) // 2)
    mask[::2] &= _uniform(random, mask[::2].shape) > 0.2
    for row, odd in zip(mask, (torch.ones_like(column), torch.zeros_like(column), column == width // 2), strict=False):
        row.copy_(odd)
    return mask


def _uniform(random: torch.Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)


def _normal(random: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def _exponential(random: torch.Generator, shape: tuple[int, ...], mean: float) -> Tensor:
    return -mean * torch.log1p(-_uniform(random, shape))
