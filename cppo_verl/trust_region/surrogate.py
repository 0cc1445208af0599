"""The surrogate shared by every rule: sum_t M_t rho_t A_t (Eq. 11 of arXiv 2606.10968), as a loss."""

import torch
from torch import Tensor

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.tokens import Tokens


def coefficients(tokens: Tokens, verdict: Verdict, ratio_cap: float, importance: Tensor | None = None) -> Tensor:
    """-A_t * min(rho_t, ratio_cap) * gate_t, (batch, length), without a graph; 0 at invalid positions.

    That is what multiplies log pi(y_t|s_t) in the loss. A rule may bring a weight of its own instead of min(rho, cap).
    A gate below 0 turns an update round.

    Args:
        importance: (batch, length), a further factor; it does not matter where the others give 0.
    """
    with torch.no_grad():
        weight = tokens.ratio.clamp_max(ratio_cap) if verdict.weight is None else verdict.weight
        coefficient = -tokens.advantages * weight * verdict.gate
        return coefficient if importance is None else torch.where(coefficient == 0, 0.0, coefficient * importance)


def loss_matrix(log_prob: Tensor, tokens: Tokens, coefficient: Tensor) -> Tensor:
    """coefficient * log pi(y_t|s_t), (batch, length), differentiable in ``log_prob``.

    What stands at invalid positions leaves the product before autograd sees it; so does a token of probability 0 under
    pi, whose gradient A rho grad log pi vanishes with rho.

    Args:
        log_prob: (batch, length) any floating dtype, with its graph; ``tokens`` are made of it.
        coefficient: (batch, length) of ``coefficients``.
    """
    without_gradient = ~tokens.mask | (tokens.log_prob == -torch.inf)
    return log_prob.masked_fill(without_gradient, 0.0) * coefficient
