"""The surrogate shared by every rule: sum_t M_t rho_t A_t (Eq. 11 of arXiv 2606.10968), as a loss."""

import torch
from torch import Tensor

from cppo_verl.rules import Tokens, Verdict


def importance_weight(tokens: Tokens, verdict: Verdict, ratio_cap: float) -> Tensor:
    """Stop-graded weight of each token's update: min(rho_t, ratio_cap) unless the rule brought its own."""
    return verdict.weight if verdict.weight is not None else tokens.ratio.clamp_max(ratio_cap)


def loss_matrix(log_prob: Tensor, tokens: Tokens, verdict: Verdict, ratio_cap: float) -> Tensor:
    """-A_t * stopgrad(min(rho_t, cap)) * gate_t * log pi(y_t|s_t), (batch, length), differentiable in ``log_prob``.

    Tokens that are masked, invalid, or of zero probability leave autograd before any product is formed, so that an
    infinite log-prob there harms neither the value nor the gradient.

    Args:
        log_prob: (batch, length) any floating dtype, with its graph.
    """
    with torch.no_grad():
        coefficient = -tokens.advantages * importance_weight(tokens, verdict, ratio_cap)
        if verdict.gate.dtype != torch.bool:
            coefficient = coefficient * verdict.gate
            live = tokens.mask & (verdict.gate > 0)
        else:
            live = tokens.mask & verdict.gate
        live = live & (tokens.log_prob > -torch.inf)
        coefficient = torch.where(live, coefficient, 0.0)
    return coefficient * torch.where(live, log_prob.to(coefficient.dtype), 0.0)
