"""The policy-improvement bound behind CPPO: its constants as functions, and a certificate of a realised batch.

Lemma, proposition, theorem and corollary numbers are those of arXiv 2606.10968; the uniform rule it compares with is
DPPO (arXiv 2602.04879). Setting: one horizon T, mu > 0, D_t the total variation of pi(.|s_t) from mu(.|s_t) over the
whole vocabulary, |R| <= xi (half the reward's range will do: a constant added to R changes neither L' nor Delta).

Assumed throughout, and checked on no batch: the constraints hold for pi at every state that mu reaches. A mask only
stops the updates that would leave the region. A sampled-token or top-K divergence is a lower bound of D_t, and a KL
divergence is no total variation (TV <= sqrt(KL / 2)): with those the certificate is a diagnostic, not a proof.
"""

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = float | Tensor


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


def suffix_tv_bound(token_bounds: Tensor) -> Tensor:
    """1 - prod_{j>t} (1 - l_j) >= TV of the laws of y_{t+1:T} given any y_{1:t} (Lemma 3), (..., T) -> (..., T).

    Assumes D_j <= l_j in [0, 1] at every state: the laws overlap in at least the sum of prod_j min(mu_j, pi_j).
    """
    return -torch.expm1(_sum_after(torch.log1p(-token_bounds)))


def suffix_tv_sum(token_bounds: Tensor) -> Tensor:
    """sum_{j>t} l_j, the looser bound of Lemma 3 (union bound), (..., T) -> (..., T)."""
    return _sum_after(token_bounds)


def gap_bound(mean_divergence: Tensor, token_bounds: Tensor, xi: Scalar = 1.0) -> Tensor:
    """4 xi sum_{t<T} u_t sum_{j>t} l_j >= |Delta| (Proposition 4), (..., T) -> (...).

    u_t = E_mu[D_t] and l_t >= D_t at every state; the last u and the first l do not matter. Given y_{1:t},
    |E[R (1 - rho_{t+1:T})]| <= 2 xi TV(suffix laws) <= 2 xi sum_{j>t} l_j, and E|rho_t - 1| = 2 u_t.
    """
    return 4 * xi * (mean_divergence * suffix_tv_sum(token_bounds)).sum(-1)


def per_token_bound(thresholds: Scalar, weights: Tensor) -> Tensor:
    """lbar = max_t c_t / w_t, the largest divergence that w_t D_t <= c_t allows (Theorem 1), (..., T) -> (...).

    c_t is a number or broadcastable to the weights w_t > 0, which are infinite at positions to leave out.
    """
    return (thresholds / weights).amax(-1)


def lambda_weights(length: int, token_bound: Scalar, xi: Scalar = 1.0) -> Tensor:
    """lambda_t = 4 xi lbar (T - t): what one unit of u_t costs in the bound (Theorem 1), float64.

    (..., T) for t = 1..T, T at least 1; the last entry is 0.
    """
    bound = torch.as_tensor(token_bound, dtype=torch.float64).unsqueeze(-1)
    return _lambda(torch.arange(length - 1, -1, -1, dtype=torch.float64, device=bound.device), bound, xi)


def residual_constant(length: Any, token_bound: Any, delta_b: Any, xi: Any = 1.0) -> Any:
    """2 xi T (T - 1) lbar delta_b >= |Delta| (Theorem 1); numbers, arrays or tensors, elementwise.

    Assumes w_t D_t <= c_t at every state, P_m = sum_{t<=m} w_t u_t <= delta_b W_m for all m < T (in expectation over
    mu; pathwise implies it), and lambda_t / w_t non-increasing. Then Proposition 4 with l_j = lbar gives
    sum_t lambda_t u_t, summation by parts turns it into sum_m (lambda_m/w_m - lambda_{m+1}/w_{m+1}) P_m with
    non-negative factors (lambda_T = 0), and P_m = delta_b W_m sums back to delta_b sum_t lambda_t.
    Schedules that break the monotone lambda_t / w_t, as shuffled weights can, are not covered.
    """
    return 2 * xi * length * (length - 1) * token_bound * delta_b


def implemented_residual(length: Scalar, delta: Scalar, delta_b: Scalar, w_min: Scalar, xi: Scalar = 1.0) -> Scalar:
    """2 xi T (T - 1) delta delta_b / w_min: Theorem 1 with c_t = delta and the linear schedule (Eq. 9), T >= 2."""
    return residual_constant(length, delta / w_min, delta_b, xi)


def uniform_residual(length: Scalar, delta: Scalar, xi: Scalar = 1.0) -> Scalar:
    """2 xi T (T - 1) delta^2: Proposition 4 when all that is known is D_t <= delta at every state (DPPO)."""
    return 2 * xi * length * (length - 1) * delta * delta


def prefix_ratio(delta: Scalar, delta_b: Scalar) -> Scalar:
    """delta_b / delta: Theorem 1 at w = 1, c_t = delta over the uniform rule at the same delta (Corollary 6)."""
    return delta_b / delta


def implemented_ratio(delta: Scalar, delta_b: Scalar, w_min: Scalar) -> Scalar:
    """delta_b / (delta w_min): the implemented schedule over the uniform rule at the same delta (Corollary 7)."""
    return delta_b / (delta * w_min)


def influence_per_budget(weights: Tensor) -> Tensor:
    """g_t = (T - t) / w_t: later tokens that a divergence at t disturbs, per unit of budget it costs (Proposition 5).

    (..., T) -> (..., T), w_t > 0.
    """
    length = weights.shape[-1]
    return torch.arange(length - 1, -1, -1, dtype=weights.dtype, device=weights.device) / weights


def linear_influence_drop(weights: Tensor, w_min: Scalar) -> Tensor:
    """g_t - g_{t+1} = w_min / (w_t w_{t+1}) > 0 for the linear schedule (Proposition 5), (..., T) -> (..., T - 1).

    So the linear schedule (Eq. 9 with T the response's own length) always meets Theorem 1's hypothesis.
    """
    return w_min / (weights[..., :-1] * weights[..., 1:])


def slack_term(length: Scalar, delta: Scalar, token_bound: Scalar, first_weight: Scalar, xi: Scalar = 1.0) -> Scalar:
    """delta 4 xi lbar (T - 1) / w_1: what the initial slack of Eq. 8 adds to Theorem 1's residual (Proposition 8).

    The implemented prefix constraint is S_m <= delta + delta_b W_{m-1}; all that is used of it is
    P_m <= delta + delta_b W_m, and the summation by parts charges a constant delta with lambda_1 / w_1.
    """
    return 4 * xi * token_bound * (length - 1) * delta / first_weight


def terminal_only_ratio(length: Scalar) -> Scalar:
    """2 - 2/T: worst sum_t lambda_t u_t under one terminal constraint over that under every prefix's (App. B.8).

    At w = 1, T >= 2. The terminal constraint is that of the last prefix in the bound, sum_{t<T} u_t <= (T - 1) delta_b,
    whose worst case spends everything on the first token. A constraint on the mean over all T tokens, as TRM-Avg has,
    may spend T delta_b there, and then the ratio is 2.
    """
    return 2 - 2 / length


class Certificate(NamedTuple):
    """Means over the responses that have a valid token; 0-d tensors, float64.

    Attributes:
        realised: sum_t lambda_t D_t, the bound of Theorem 1 at the divergences of the batch.
        worst_case: Theorem 1's residual constant at the thresholds.
        ratio: realised / worst_case; 0 when both are 0, infinite when only worst_case is (delta_b = 0).
        responses: how many there are, to combine the means of several micro-batches.
    """

    realised: Tensor
    worst_case: Tensor
    ratio: Tensor
    responses: Tensor


def certificate(
    divergence: Tensor, weights: Tensor, mask: Tensor, delta: float, delta_b: Scalar, xi: float = 1.0
) -> Certificate:
    """How much of Theorem 1's residual a batch uses.

    The theorem has one horizon; here each response is read at its own: T is its number of valid tokens, u_t its own
    D_t, lbar = max_t delta / w_t, and the two sums are averaged over responses. With several lengths that is a reading
    of the theorem, not an instance of it. The ratio is at most 1 when every prefix average is within delta_b. Above 1
    the batch has drifted further: within the initial slack (Proposition 8), or because a mask does not move pi back.
    Runs without gradient; sums are accumulated in float64.

    Args:
        divergence: (batch, length) D_t, floating; what stands at invalid positions does not matter.
        weights: (batch, length) w_t, positive at valid positions; as for Theorem 1, with g_t non-increasing.
        mask: (batch, length) bool or 0/1; holes and padding on either side are allowed.
        delta: token threshold.
        delta_b: prefix budget, a number or one for each response, (batch,) or (batch, 1). For a rule without a prefix
            budget the equivalent is delta / w_min (w_t D_t <= delta alone gives P_m <= m delta).
        xi: bound on |R|.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes(divergence, weights, mask, delta_b)
    with torch.no_grad():
        valid = mask.bool()
        dtype = torch.promote_types(divergence.dtype, torch.float32)
        ordinal = valid.cumsum(-1, dtype=dtype)
        length = valid.sum(-1, dtype=torch.float64)
        later = length.to(dtype).unsqueeze(-1) - ordinal  # T - t
        drift = (later * divergence.masked_fill(~valid, 0.0)).sum(-1, dtype=torch.float64)
        cost = weights.double().masked_fill(~valid, torch.inf)
        token_bound = per_token_bound(delta, torch.nn.functional.pad(cost, (0, 1), value=torch.inf))
        budget = torch.as_tensor(delta_b, dtype=torch.float64, device=divergence.device).reshape(-1)

        responses = (length > 0).sum()
        count = responses.clamp_min(1)
        realised = torch.as_tensor(_lambda(drift, token_bound, xi)).sum() / count
        worst_case = torch.as_tensor(residual_constant(length, token_bound, budget, xi)).sum() / count
        ratio = torch.where(realised == 0, 0.0, realised / worst_case)
        return Certificate(realised, worst_case, ratio, responses.double())


def _lambda(later: Tensor, token_bound: Tensor, xi: Scalar) -> Tensor:
    """4 xi lbar times (T - t), or times a sum over t of (T - t) D_t."""
    return 4 * xi * token_bound * later


def _sum_after(values: Tensor) -> Tensor:
    """sum_{j>t} values_j, (..., T) -> (..., T); the last entry is 0."""
    from_here = values.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([from_here[..., 1:], torch.zeros_like(from_here[..., :1])], dim=-1)


def _check_shapes(divergence: Tensor, weights: Tensor, mask: Tensor, delta_b: Scalar) -> None:
    shapes = {"divergence": tuple(divergence.shape), "weights": tuple(weights.shape), "mask": tuple(mask.shape)}
    if divergence.dim() != 2 or len(set(shapes.values())) != 1:
        raise ValueError(f"certificate needs tensors of one (batch, length) shape, got {shapes}")
    batch = divergence.shape[0]
    if isinstance(delta_b, Tensor) and tuple(delta_b.shape) not in ((), (1,), (batch,), (batch, 1)):
        raise ValueError(f"delta_b={tuple(delta_b.shape)} must be a number, ({batch},) or ({batch}, 1)")
