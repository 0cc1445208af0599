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
    """What a rule may look at, made by ``of``. Tensors are (batch, length).

    Attributes:
        values: (3, batch, length) float32 or float64: ``log_prob``, ``old_log_prob``, ``advantages``; 0 at invalid
            positions.
        mask: bool, valid response tokens.
    """

    values: Tensor
    mask: Tensor

    @property
    def log_prob(self) -> Tensor:
        """log pi(y_t|s_t)."""
        return self.values[0]

    @property
    def old_log_prob(self) -> Tensor:
        """log mu(y_t|s_t)."""
        return self.values[1]

    @property
    def advantages(self) -> Tensor:
        """A_t."""
        return self.values[2]

    @classmethod
    def of(cls, log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, mask: Tensor) -> "Tokens":
        """Detached tokens in at least float32; what stands at invalid positions does not matter.

        Raises:
            ValueError: when the shapes differ.
        """
        tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantages": advantages, "response_mask": mask}
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        if len(set(shapes.values())) != 1 or log_prob.dim() != 2:
            raise ValueError(f"the policy loss needs tensors of one (batch, length) shape, got {shapes}")
        double = torch.float64 in (log_prob.dtype, old_log_prob.dtype)
        dtype, valid = torch.float64 if double else torch.float32, mask.bool()
        values = torch.stack([x.detach().to(dtype) for x in (log_prob, old_log_prob, advantages)])
        return cls(torch.where(valid, values, 0.0), valid)

    @cached_property
    def log_ratio(self) -> Tensor:
        """log rho_t, clamped to +-``MAX_LOG_RATIO``; 0 at invalid positions."""
        return (self.log_prob - self.old_log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    @cached_property
    def ratio(self) -> Tensor:
        """rho_t = pi/mu from the clamped log-ratio; 1 at invalid positions."""
        return self.log_ratio.exp()

    @cached_property
    def ordinal(self) -> Tensor:
        """1..T over a row's valid tokens (``schedule.valid_positions``)."""
        return schedule.valid_positions(self.mask, self.log_prob.dtype)

    @cached_property
    def toward_rollout(self) -> Tensor:
        """The first clause of every token rule, A_t (rho_t - 1) <= 0, bool; by signs, so that no product rounds."""
        return self.advantages.sign() * self.log_ratio <= 0

    def rows(self, rows: Tensor) -> "Tokens":
        """Those of the given responses, by an index or a bool mask over the batch."""
        return Tokens(self.values[:, rows], self.mask[rows])

    def divergence(self, kind: str) -> Tensor:
        """Binary D_t of the given kind (``tv`` or ``kl``), 0 at invalid positions."""
        return BINARY[kind](self.log_prob, self.old_log_prob)
