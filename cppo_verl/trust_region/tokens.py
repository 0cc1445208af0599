"""What a rule may look at: the tokens of a batch of responses, as pi and mu see them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cppo_verl.trust_region import schedule
from cppo_verl.trust_region.divergence import BINARY

MAX_LOG_RATIO = 20.0  # log-ratios are clamped to +-20 before exp


@dataclass(frozen=True)
class Tokens:
    """What a rule may look at. All (batch, length); floating tensors in one dtype, float32 or float64.

    Attributes:
        log_prob: log pi(y_t|s_t). old_log_prob: log mu(y_t|s_t). advantages: A_t. mask: bool, valid response tokens.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mask: Tensor

    @classmethod
    def of(cls, log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, mask: Tensor) -> "Tokens":
        """Detached tokens in at least float32.

        Raises:
            ValueError: when the shapes differ.
        """
        shapes = {
            "log_prob": tuple(log_prob.shape),
            "old_log_prob": tuple(old_log_prob.shape),
            "advantages": tuple(advantages.shape),
            "response_mask": tuple(mask.shape),
        }
        if len(set(shapes.values())) != 1 or log_prob.dim() != 2:
            raise ValueError(f"the policy loss needs tensors of one (batch, length) shape, got {shapes}")
        dtype = torch.promote_types(log_prob.dtype, old_log_prob.dtype)
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return cls(
            log_prob.detach().to(dtype), old_log_prob.detach().to(dtype), advantages.detach().to(dtype), mask.bool()
        )

    @cached_property
    def invalid(self) -> Tensor:
        """Not ``mask``."""
        return self.mask.logical_not()

    @cached_property
    def log_ratio(self) -> Tensor:
        """log rho_t, clamped to +-``MAX_LOG_RATIO``; arbitrary at invalid positions."""
        return (self.log_prob - self.old_log_prob).clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    @cached_property
    def ratio(self) -> Tensor:
        """rho_t = pi/mu from the clamped log-ratio, whose memory it takes over; arbitrary at invalid positions."""
        log_ratio = self.log_ratio
        del self.__dict__["log_ratio"]
        return log_ratio.exp_()

    @cached_property
    def ordinal(self) -> Tensor:
        """``schedule.valid_positions`` of the mask: 1..T over a row's valid tokens."""
        return schedule.valid_positions(self.mask, self.log_prob.dtype)

    @cached_property
    def away_from_rollout(self) -> Tensor:
        """A_t (rho_t - 1) > 0, bool; by log-probs (rho rounds to 1)."""
        return self.advantages.sign().mul_(self.log_ratio) > 0  # the sign: no product underflows

    @property
    def toward_rollout(self) -> Tensor:
        """The first clause of every token rule, A_t (rho_t - 1) <= 0, bool."""
        return self.away_from_rollout.logical_not()

    def without_rows(self, rows: Tensor) -> "Tokens":
        """The same with the given rows, (batch,) bool, emptied: mask false and values 0."""
        drop = rows.unsqueeze(-1)
        log_prob, old_log_prob, advantages = (
            x.masked_fill(drop, 0.0) for x in (self.log_prob, self.old_log_prob, self.advantages)
        )
        return Tokens(log_prob, old_log_prob, advantages, self.mask & ~drop)

    def divergence(self, kind: str) -> Tensor:
        """Binary D_t of the given kind (``tv`` or ``kl``), 0 at invalid positions."""
        return BINARY[kind](self.log_prob, self.old_log_prob).masked_fill_(self.invalid, 0.0)


def last(*cumulative: Tensor) -> Tensor:
    """Last columns of running sums as a copy, (sums, batch); zeros for width 0."""
    return torch.stack([x[:, -1] if x.shape[-1] else x.sum(-1) for x in cumulative])
