"""The policy-improvement bound behind CPPO: its constants as functions, and a certificate of a realised batch.

Lemma, proposition, theorem and corollary numbers are those of arXiv 2606.10968. Setting: one horizon T, mu > 0, D_t the
total variation of pi(.|s_t) from mu(.|s_t) over the whole vocabulary, |R| <= xi (half the reward's range will do: a
constant added to R changes neither L' nor Delta).

Assumed throughout, and checked on no batch: the constraints hold for pi at every state that mu reaches. A mask only
stops the updates that would leave the region. A sampled-token or top-K divergence is a lower bound of D_t, and a KL
divergence is no total variation (TV <= sqrt(KL / 2)): with those the certificate is a diagnostic, not a proof.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


def surrogate_terms(ratio: Tensor) -> Tensor:
    """sum_t (rho_t - 1) of each response, (..., T) -> (...); L' = E_mu[R * this] (Lemma 2)."""
    return (ratio - 1).sum(-1)


def gap_terms(ratio: Tensor) -> Tensor:
    """sum_t (rho_t - 1)(1 - rho_{t+1:T}) of each response, (..., T) -> (...); Delta = E_mu[R * this] (Lemma 2).

    rho_{t+1:T} is the product of the later ratios, 1 for t = T. The identity J(pi) - J(mu) = L' - Delta follows from
    telescoping rho_{1:T} - 1 = sum_t (rho_t - 1) rho_{t+1:T}.
    """
    from_here = ratio.flip(-1).cumprod(-1).flip(-1)
    later = torch.cat([from_here[..., 1:], torch.ones_like(from_here[..., :1])], dim=-1)
    return ((ratio - 1) * (1 - later)).sum(-1)


def gap_bound(mean_divergence: Tensor, token_bounds: Tensor, xi: float = 1.0) -> Tensor:
    """4 xi sum_{t<T} u_t sum_{j>t} l_j >= |Delta| (Proposition 4), (..., T) -> (...).

    u_t = E_mu[D_t] and l_t >= D_t at every state; the last u and the first l do not matter. Given y_{1:t},
    |E[R (1 - rho_{t+1:T})]| <= 2 xi TV(suffix laws) <= 2 xi sum_{j>t} l_j, and E|rho_t - 1| = 2 u_t.
    """
    after = token_bounds.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return 4 * xi * (mean_divergence[..., :-1] * after).sum(-1)


def residual_constant(length: Any, token_bound: Any, delta_b: Any, xi: Any = 1.0) -> Any:
    """2 xi T (T - 1) lbar delta_b >= |Delta| (Theorem 1); numbers, arrays or tensors, elementwise.

    Assumes w_t D_t <= c_t at every state, lbar = max_t c_t / w_t, P_m = sum_{t<=m} w_t u_t <= delta_b W_m for all m < T
    (in expectation over mu; pathwise implies it), and lambda_t / w_t non-increasing with lambda_t = 4 xi lbar (T - t).
    Then Proposition 4 with l_j = lbar gives sum_t lambda_t u_t, summation by parts turns it into
    sum_m (lambda_m/w_m - lambda_{m+1}/w_{m+1}) P_m with non-negative factors (lambda_T = 0), and P_m = delta_b W_m sums
    back to delta_b sum_t lambda_t. Schedules that break the monotone lambda_t / w_t, as shuffled weights can, are not
    covered; the linear one always meets it (Proposition 5), with lbar = delta / w_min where c_t = delta (Corollary 7).
    """
    return 2 * xi * length * (length - 1) * token_bound * delta_b


class Certificate(NamedTuple):
    """Means over responses of sum_t lambda_t D_t and of Theorem 1's residual, and their ratio; 0-d float64."""

    realised: Tensor
    worst_case: Tensor
    ratio: Tensor


@torch.no_grad()
def certificate(divergence: Tensor, weights: Tensor, mask: Tensor, delta: float, delta_b: float) -> Certificate:
    """How much of Theorem 1's residual a batch uses, xi = 1.

    The theorem has one horizon; here each response is read at its own: T is its number of valid tokens, u_t its own
    D_t, lbar = max_t delta / w_t. With several lengths that is a reading of the theorem, not an instance of it. The
    ratio is at most 1 when every prefix average is within delta_b. Above 1 the batch has drifted further: within the
    initial slack of Eq. 8 (Proposition 8), or because a mask does not move pi back.

    Args:
        divergence, weights: (batch, length) D_t and w_t > 0; what stands at invalid positions does not matter.
        mask: (batch, length) bool or 0/1; holes and padding on either side are allowed.
        delta, delta_b: token threshold and prefix budget.
    """
    valid = mask.bool()
    ordinal = valid.cumsum(-1).double()
    length = ordinal[:, -1:]
    drift = ((length - ordinal) * divergence.masked_fill(~valid, 0.0)).sum(-1)  # sum_t (T - t) D_t
    token_bound = delta / weights.double().masked_fill(~valid, torch.inf).amin(-1)
    responses = (length > 0).sum().clamp_min(1)
    realised = (4 * token_bound * drift).sum() / responses
    worst_case = residual_constant(length.squeeze(-1), token_bound, delta_b).sum() / responses
    return Certificate(realised, worst_case, torch.where(realised == 0, 0.0, realised / worst_case))
