"""Random responses for the rules, the same on every machine: float64 on the CPU, then rounded to what a device gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

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

    def tokens(self) -> Tokens:
        """As a loss hands it to a rule."""
        return Tokens.of(self.log_prob, self.old_log_prob, self.advantages, self.mask)


def binary_batch(rows: int, width: int, seed: int = 0) -> Batch:
    """Half of the tokens confident (p near 1); pi's drift from mu differs by row, 0.003 to 1 in the log-ratio."""
    with _seeded(seed):
        shape = (rows, width)
        confident, unsure = -(10.0 ** (4 * _uniform(shape) - 5)), 1.5 * torch.log1p(-_uniform(shape)) - 1e-4
        old_log_prob = torch.where(_uniform(shape) < 0.5, confident, unsure)
        drift = 10.0 ** (2.5 * _uniform((rows, 1)) - 2.5)
        log_prob = old_log_prob * (drift * _normal(shape)).exp() + drift * _normal(shape)
        return Batch(log_prob.clamp_max(-1e-7), old_log_prob, *_advantages_and_mask(rows, width))


def topk_batch(rows: int, width: int, k: int, seed: int = 0) -> Batch:
    """Tokens sampled from small policies mu, flat to peaked, and pi some way off."""
    with _seeded(seed):
        logits = 10.0 ** (1.1 * _uniform((rows, width, 1)) - 0.3) * _normal((rows, width, VOCABULARY))
        drift = 10.0 ** (2.3 * _uniform((rows, 1, 1)) - 2.5)
        log_mu, log_pi = logits.log_softmax(-1), (logits + drift * _normal(logits.shape)).log_softmax(-1)
        sampled = torch.multinomial(log_mu.exp().flatten(0, 1), 1).view(rows, width, 1)
        listed = log_mu.topk(k).indices
        top = log_pi.gather(-1, listed), log_mu.gather(-1, listed).masked_fill(listed == sampled, -torch.inf)
        old_log_prob, log_prob = (x.gather(-1, sampled).squeeze(-1).clamp_max(-1e-7) for x in (log_mu, log_pi))
        return Batch(log_prob, old_log_prob, *_advantages_and_mask(rows, width), *top)


def _advantages_and_mask(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """One advantage a response, every tenth 0. Padding on either side, holes in every second row; one row full, one
    empty, one of a single token."""
    advantages = _normal((rows, 1))
    advantages[::10] = 0
    ends, column = torch.randint(0, width + 1, (rows, 2)).sort(-1).values, torch.arange(width)
    mask = (column >= ends[:, :1] // 4) & (column < (ends[:, 1:] + width) // 2)
    mask[::2] &= _uniform(mask[::2].shape) > 0.2
    mask[:3] = torch.stack([torch.ones_like(column), torch.zeros_like(column), column == width // 2])
    return advantages.expand(rows, width).contiguous(), mask


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU from this seed; those of the process go on afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


_uniform = partial(torch.rand, dtype=torch.float64)
_normal = partial(torch.randn, dtype=torch.float64)
