"""Divergence of the trained policy pi from the rollout policy mu at one token.

``log_prob`` is log pi(y_t|s_t), ``old_log_prob`` is log mu(y_t|s_t), both at the sampling temperature. Everything is
elementwise, for any floating dtypes, computed in float32 (float64 stays float64), and meant to be called under
``torch.no_grad``; minus infinity is probability 0.
Binary estimators see the partition {sampled token, the rest}; they bound the full-vocabulary value from below.
"""

import torch
from torch import Tensor

LOWEST_LOG_PROB = -700.0  # exp of it is still a normal float64
IMPOSSIBLE = 1e4  # nats, in place of an infinite KL: beyond any threshold, and still finite when summed


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself when it is float32 or float64, else its float32 copy."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def binary_tv(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """Total variation |pi(y) - mu(y)| of the binary partition, in [0, 1] (arXiv 2602.04879)."""
    return at_least_float32(log_prob).exp().sub_(at_least_float32(old_log_prob).exp()).abs_()


def binary_kl(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """KL(mu || pi) = p log(p/q) + (1-p) log((1-p)/(1-q)) of the binary partition in nats (arXiv 2602.04879).

    Never negative, never NaN, finite. In float64 with 1-p from expm1 of the log-prob: near p = q the two terms cancel
    down to (p-q)^2, which float32 cannot hold. A token that became impossible (q = 0 < p) costs ``IMPOSSIBLE``;
    q = 1 > p, mostly a rounded log-prob of 0, costs what the smallest 1 - q would.

    Values of ``log_prob`` and ``old_log_prob`` above 0 count as 0.
    """
    dtype = torch.promote_types(torch.float32, torch.promote_types(log_prob.dtype, old_log_prob.dtype))
    log_q, log_p = (x.double().clamp(LOWEST_LOG_PROB, 0.0) for x in (log_prob, old_log_prob))
    not_q, not_p = -torch.expm1(log_q), -torch.expm1(log_p)
    tiny = torch.finfo(torch.float64).tiny
    sampled = log_p.exp() * (log_p - log_q)
    rest = not_p * (not_p.clamp_min(tiny).log() - not_q.clamp_min(tiny).log())
    impossible = (log_prob == -torch.inf) & (old_log_prob > -torch.inf)
    return (sampled + rest).clamp_min(0.0).masked_fill(impossible, IMPOSSIBLE).to(dtype)


def full_tv(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """Total variation over the whole vocabulary, (..., V) -> (...); for tests and small models."""
    return 0.5 * (at_least_float32(log_pi).exp() - at_least_float32(log_mu).exp()).abs().sum(-1)


BINARY = {"tv": binary_tv, "kl": binary_kl}
