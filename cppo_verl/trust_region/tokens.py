"""What a rule may look at: the tokens of a batch of responses, as pi and mu see them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cppo_verl.trust_region.divergence import BINARY

MAX_LOG_RATIO = 20.0  # log-ratios are clamped to +-20 before exp


@dataclass(frozen=True)
class Tokens:
    """log pi(y_t|s_t), log mu(y_t|s_t), A_t and which tokens are valid, (batch, length); made by ``of``.

    The first three are float32 or float64, without a graph, and 0 at invalid positions; the mask is bool.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mask: Tensor

    @classmethod
    def of(cls, log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, mask: Tensor) -> "Tokens":
        """Tokens of any floating dtypes and a bool or 0/1 mask; what stands at invalid positions does not matter.

        Raises:
            ValueError: when the shapes differ.
        """
        tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantages": advantages, "response_mask": mask}
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        if len(set(shapes.values())) != 1 or log_prob.dim() != 2:
            raise ValueError(f"the policy loss needs tensors of one (batch, length) shape, got {shapes}")
        dtype = torch.float64 if torch.float64 in (log_prob.dtype, old_log_prob.dtype) else torch.float32
        floating = torch.stack([x.detach().to(dtype) for x in (log_prob, old_log_prob, advantages)])
        valid = mask.bool()
        log_prob, old_log_prob, advantages = torch.where(valid, floating, 0.0)
        return cls(log_prob, old_log_prob, advantages, valid)

    @cached_property
    def log_ratio(self) -> Tensor:
        """log rho_t, clamped to +-``MAX_LOG_RATIO``; 0 at invalid positions."""
        return (self.log_prob - self.old_log_prob).clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    @cached_property
    def ratio(self) -> Tensor:
        """rho_t = pi/mu from the clamped log-ratio; 1 at invalid positions."""
        return self.log_ratio.exp()

    @cached_property
    def ordinal(self) -> Tensor:
        """1..T over a row's valid tokens; an invalid position carries that of the valid token before it, or 0."""
        return self.mask.cumsum(-1, dtype=self.log_prob.dtype)

    @cached_property
    def counted(self) -> Tensor:
        """What metrics are about, bool: the valid tokens of responses with an advantage other than 0."""
        return self.mask & self.advantages.any(-1, keepdim=True)

    @cached_property
    def toward_rollout(self) -> Tensor:
        """The first clause of every token rule, A_t (rho_t - 1) <= 0, bool; by signs, so that no product rounds."""
        return self.advantages.sign().mul_(self.log_ratio) <= 0

    @cached_property
    def zero(self) -> Tensor:
        """0, 0-d, on the device: a number in ``torch.where`` would be sent there each time."""
        return self.log_prob.new_zeros(())

    def divergence(self, kind: str) -> Tensor:
        """Binary D_t of the given kind (``tv`` or ``kl``), 0 at invalid positions."""
        return BINARY[kind](self.log_prob, self.old_log_prob)
