"""Random responses for the rules, the same on every machine: float64 on the CPU, then rounded to what a device gets."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cppo_verl.trust_region import topk
from cppo_verl.trust_region.tokens import Tokens

VOCABULARY = 64  # of the small policies that top-K batches are drawn from


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loss gets: (rows, width) floating tensors, ``mask`` bool; in a top-K batch also pi's and mu's log-probs of
    mu's top-K, the sampled token left out, both (rows, width, k)."""

    log_prob: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mask: Tensor
    log_pi: Tensor | None = None
    log_mu: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Batch":
        """The same on a device, floating tensors in ``dtype``."""
        moved = {name: x.to(device, dtype) for name, x in vars(self).items() if x is not None and x.is_floating_point()}
        return Batch(**moved, mask=self.mask.to(device))

    @property
    def estimator(self) -> str:
        """Of the divergence that it is for."""
        return "binary" if self.log_pi is None else "topk"

    def tokens(self) -> Tokens:
        """As a loss hands it to a rule."""
        return Tokens.of(self.log_prob, self.old_log_prob, self.advantages, self.mask)

    def divergence(self, kind: str) -> Tensor:
        """D_t, (rows, width), by its estimator."""
        if self.log_pi is None or self.log_mu is None:
            return self.tokens().divergence(kind)
        return topk.TOPK[kind](self.log_pi, self.log_mu, self.log_prob, self.old_log_prob)


class Draw:
    """Uniform and normal float64 numbers of the CPU."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.uniform = partial(torch.rand, dtype=torch.float64, generator=self.generator)
        self.normal = partial(torch.randn, dtype=torch.float64, generator=self.generator)

    def advantages_and_mask(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        """One advantage a response, every tenth 0. Padding on either side, holes in every second row; one row full, one
        empty, one of a single token."""
        advantages = self.normal((rows, 1))
        advantages[::10] = 0
        ends, column = (self.uniform((rows, 2)) * (width + 1)).long().sort(-1).values, torch.arange(width)
        mask = (column >= ends[:, :1] // 4) & (column < (ends[:, 1:] + width) // 2)
        mask[::2] &= self.uniform(mask[::2].shape) > 0.2
        mask[:3] = torch.stack([torch.ones_like(column), torch.zeros_like(column), column == width // 2])
        return advantages.expand(rows, width).contiguous(), mask


def binary_batch(rows: int, width: int, seed: int = 0) -> Batch:
    """Half of the tokens confident (p near 1); pi's drift from mu differs by row, 0.003 to 1 in the log-ratio."""
    draw, shape = Draw(seed), (rows, width)
    confident, unsure = -(10.0 ** (4 * draw.uniform(shape) - 5)), 1.5 * torch.log1p(-draw.uniform(shape)) - 1e-4
    old_log_prob = torch.where(draw.uniform(shape) < 0.5, confident, unsure)
    drift = 10.0 ** (2.5 * draw.uniform((rows, 1)) - 2.5)
    log_prob = old_log_prob * (drift * draw.normal(shape)).exp() + drift * draw.normal(shape)
    return Batch(log_prob.clamp_max(-1e-7), old_log_prob, *draw.advantages_and_mask(rows, width))


def topk_batch(rows: int, width: int, k: int, seed: int = 0) -> Batch:
    """Tokens sampled from small policies mu, flat to peaked, and pi some way off."""
    draw = Draw(seed)
    logits = 10.0 ** (1.1 * draw.uniform((rows, width, 1)) - 0.3) * draw.normal((rows, width, VOCABULARY))
    drift = 10.0 ** (2.3 * draw.uniform((rows, 1, 1)) - 2.5)
    log_mu, log_pi = logits.log_softmax(-1), (logits + drift * draw.normal(logits.shape)).log_softmax(-1)
    sampled = torch.multinomial(log_mu.exp().flatten(0, 1), 1, generator=draw.generator).view(rows, width, 1)
    listed = log_mu.topk(k).indices
    top = log_pi.gather(-1, listed), log_mu.gather(-1, listed).masked_fill(listed == sampled, -torch.inf)
    old_log_prob, log_prob = (x.gather(-1, sampled).squeeze(-1).clamp_max(-1e-7) for x in (log_mu, log_pi))
    return Batch(log_prob, old_log_prob, *draw.advantages_and_mask(rows, width), *top)
