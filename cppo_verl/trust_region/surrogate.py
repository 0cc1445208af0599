"""The surrogate shared by every rule: sum_t M_t rho_t A_t (Eq. 11 of arXiv 2606.10968), as a loss."""

import torch
from torch import Tensor

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.tokens import Tokens


def coefficients(tokens: Tokens, verdict: Verdict, ratio_cap: float) -> Tensor:
    """-A_t * min(rho_t, ratio_cap) * gate_t, (batch, length), without a graph; 0 where a token adds nothing.

    A gate below 0 turns an update round.

    That is what multiplies log pi(y_t|s_t) in the loss. A rule may bring a weight of its own instead of min(rho, cap).
    """
    with torch.no_grad():
        weight = tokens.ratio.clamp_max(ratio_cap) if verdict.weight is None else verdict.weight.clone()
        coefficient = weight.mul_(tokens.advantages).neg_()
        if verdict.gate.dtype == torch.bool:
            live = tokens.mask & verdict.gate
        else:
            coefficient *= verdict.gate
            live = tokens.mask & (verdict.gate != 0)
        live &= tokens.log_prob > -torch.inf  # probability 0: its gradient A rho grad log pi vanishes with rho
        return coefficient.masked_fill_(live.logical_not_(), 0.0)


def loss_matrix(log_prob: Tensor, coefficient: Tensor) -> Tensor:
    """coefficient * log pi(y_t|s_t), (batch, length), differentiable in ``log_prob``.

    Tokens with coefficient 0 leave autograd before the product is formed, so that an infinite log-prob there harms
    neither the value nor the gradient.

    Args:
        log_prob: (batch, length) any floating dtype, with its graph.
        coefficient: (batch, length) of ``coefficients``.
    """
    return coefficient * torch.where(coefficient != 0, log_prob.to(coefficient.dtype), 0.0)
