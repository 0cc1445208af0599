"""NFPO's forward trace: the cumulative ratio of the next N - 1 tokens, as a weight (arXiv 2605.20865).

From that paper's abstract, for its equations could not be looked up. Ours by choice: the trace is a weight without
gradient, capped at ``trace_cap`` and not bounded from below, it counts valid tokens only, and a window that passes the
response's end stops there.

With N = T and no cap, E_mu[R sum_t (rho_t - 1) trace_t] = J(pi) - J(mu) (Lemma 2 of arXiv 2606.10968 with Delta in the
surrogate).
"""

import dataclasses

import torch
from torch import Tensor

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.tokens import MAX_LOG_RATIO, Tokens


def forward_trace(tokens: Tokens, steps: int) -> Tensor:
    """prod of rho_j over the ``steps`` - 1 valid tokens after each, (batch, length); 1 for the last token.

    A difference of running sums of log rho, clamped to +-20 as a single log-ratio is: linear in tokens, whatever the
    window. Arbitrary at invalid positions. ``steps`` is N >= 1.
    """
    so_far = tokens.log_ratio.cumsum(-1, dtype=torch.float64)  # long sums, whose difference is wanted
    ordinal = tokens.ordinal.long()
    # so_far of the k-th valid token, by k; entry 0 is before the first one
    by_ordinal = so_far.new_zeros(so_far.shape[0], so_far.shape[1] + 1).scatter(-1, ordinal, so_far)
    ends = (ordinal + (steps - 1)).minimum(ordinal[:, -1:])
    log_trace = (by_ordinal.gather(-1, ends) - so_far).to(tokens.log_ratio.dtype)
    return log_trace.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def traced(tokens: Tokens, verdict: Verdict, knobs: TrustRegionKnobs) -> Verdict:
    """The verdict with the weight min(rho_t, ratio_cap) min(trace_t, trace_cap); either cut counts as capped."""
    trace = forward_trace(tokens, knobs.trace)
    weight = tokens.ratio.clamp_max(knobs.ratio_cap) * trace.clamp_max(knobs.trace_cap)
    capped = (tokens.ratio > knobs.ratio_cap) | (trace > knobs.trace_cap)
    return dataclasses.replace(verdict, weight=weight, capped=capped)
