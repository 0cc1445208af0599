"""The surrogate shared by every rule: sum_t M_t rho_t A_t (Eq. 11 of arXiv 2606.10968), as a loss."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.tokens import Tokens


def coefficients(tokens: Tokens, verdict: Verdict, ratio_cap: float) -> Tensor:
    """-A_t * min(rho_t, ratio_cap) * gate_t, (batch, length), without a graph; 0 where a token adds nothing.

    That is what multiplies log pi(y_t|s_t) in the loss. A rule may bring a weight of its own instead of min(rho, cap).
    A gate below 0 turns an update round.
    """
    with torch.no_grad():
        weight = verdict.weight
        if weight is None:
            weight = tokens.ratio.clamp_max(ratio_cap)
            coefficient = _negative_product(weight, tokens.advantages, out=weight)
        else:
            coefficient = _negative_product(weight, tokens.advantages)
        if verdict.gate.dtype == torch.bool:
            dead = verdict.gate <= tokens.invalid  # dropped or invalid, in one pass
        else:
            coefficient *= verdict.gate
            dead = tokens.invalid.clone()
        dead |= tokens.log_prob == -torch.inf  # probability 0: its gradient A rho grad log pi vanishes with rho
        return coefficient.masked_fill_(dead, 0.0)


def loss_matrix(log_prob: Tensor, coefficient: Tensor) -> Tensor:
    """coefficient * log pi(y_t|s_t), (batch, length), differentiable once in ``log_prob``.

    Tokens with coefficient 0 leave the product, so that an infinite log-prob there harms neither the value nor the
    gradient.

    Args:
        log_prob: (batch, length) any floating dtype, with its graph.
        coefficient: (batch, length) of ``coefficients``.
    """
    return _Weighted.apply(log_prob, coefficient)


class _Weighted(torch.autograd.Function):
    """What ``coefficient * where(coefficient != 0, log_prob, 0)`` computes, in fewer passes and less memory."""

    @staticmethod
    def forward(ctx: Any, log_prob: Tensor, coefficient: Tensor) -> Tensor:
        ctx.save_for_backward(coefficient)
        ctx.dtype = log_prob.dtype
        return (log_prob * coefficient).masked_fill_(coefficient == 0, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (coefficient,) = ctx.saved_tensors
        return (gradient * coefficient).to(ctx.dtype), None


def _negative_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """-(a * b) in one pass."""
    return torch.addcmul(_zero(a.dtype, a.device), a, b, value=-1, out=out)


@lru_cache(maxsize=16)
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)
