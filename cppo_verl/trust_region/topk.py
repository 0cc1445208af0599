"""Top-K divergence of the trained policy pi from the rollout policy mu at one token, and its compact coding.

The vocabulary is reduced to mu's top-K tokens, the sampled token y, and one category with the rest of the mass
(arXiv 2602.04879, appendix; K = 20 in arXiv 2606.10968), so that binary <= top-K <= full vocabulary (in the KL but for
a floor, see ``topk_kl``). Runs in float32 (float64 stays float64), and is meant to be called under ``torch.no_grad``.

An entry whose mu log-prob is minus infinity is absent: its mass counts as rest on both sides, and a token without any
entry gets the binary divergence. An entry that repeats the sampled token must be absent (``without_sampled``).
"""

import math

import torch
from torch import Tensor

from cppo_verl.trust_region.divergence import IMPOSSIBLE, at_least_float32, binary_tv

REST_FLOOR = 1e-6  # rest masses below it are rounding of a sum near 1; in the KL they count as this much

# ---- divergences


def topk_tv(log_pi: Tensor, log_mu: Tensor, log_prob: Tensor, old_log_prob: Tensor, rest: Tensor | None = None):
    """Total variation 1/2 sum_c |q_c - p_c| over {top-K, sampled, rest}, in [0, 1]; never below ``binary_tv``.

    Args:
        log_pi, log_mu: (..., K) floating, log-probs of the listed tokens; where ``log_mu`` is minus infinity,
            ``log_pi`` does not matter.
        log_prob, old_log_prob: (...) log pi(y) and log mu(y) of the sampled token.
        rest: (...) mu's mass outside the listed and the sampled tokens; None computes it from the log-probs.

    Returns:
        (...) float32, or float64 for float64 inputs.
    """
    log_pi, log_mu, log_prob, old_log_prob = _comparable(log_pi, log_mu, log_prob, old_log_prob)
    sampled = binary_tv(log_prob, old_log_prob)
    total = (log_pi.exp() - log_mu.exp()).abs().sum(-1) + sampled
    rest = rest_mass(log_mu, old_log_prob) if rest is None else rest
    total = total + (rest_mass(log_pi, log_prob) - rest).abs()
    # rounding must not put the finer partition below the coarser one
    return torch.maximum(0.5 * total, sampled).clamp_max(1.0)


def topk_kl(log_pi: Tensor, log_mu: Tensor, log_prob: Tensor, old_log_prob: Tensor, rest: Tensor | None = None):
    """KL(mu || pi) over {top-K, sampled, rest} in nats: finite, never NaN, never negative.

    Summed as q - p + p log(p/q), which has the same total as p log(p/q) and no negative term: near pi = mu, rounding of
    the log-probs (their coding in transport included) then enters in second order. ``REST_FLOOR`` keeps a certain
    token, whose log-prob rounded to 0, from costing much. It can put the result below ``binary_kl``, by at most
    REST_FLOOR (1 - log REST_FLOOR) = 1.5e-5 nats, and mu(rest) log(REST_FLOOR / pi(rest)) where pi's rest is smaller
    than it, with rest the mass outside listed and sampled tokens. Arguments as for ``topk_tv``.
    """
    log_pi, log_mu, log_prob, old_log_prob = _comparable(log_pi, log_mu, log_prob, old_log_prob)
    rest = rest_mass(log_mu, old_log_prob) if rest is None else rest
    log_rests = (x.clamp_min(REST_FLOOR).log() for x in (rest_mass(log_pi, log_prob), rest))
    total = _kl_terms(log_pi, log_mu).sum(-1) + _kl_terms(log_prob, old_log_prob) + _kl_terms(*log_rests)
    return total.clamp_max(IMPOSSIBLE)


def _comparable(log_pi: Tensor, log_mu: Tensor, *sampled: Tensor) -> tuple[Tensor, ...]:
    """All in at least float32; what ``log_mu`` does not list is absent on both sides."""
    log_pi, log_mu, *rest = (at_least_float32(x) for x in (log_pi, log_mu, *sampled))
    return log_pi.masked_fill(log_mu == -torch.inf, -torch.inf), log_mu, *rest


def _kl_terms(log_q: Tensor, log_p: Tensor) -> Tensor:
    """q - p + p log(p/q), elementwise; exactly 0 for equal arguments, q where p = 0, infinite where q = 0 < p."""
    p, change = log_p.exp(), log_q - log_p
    near = p * (torch.expm1(change) - change)
    far = log_q.exp() - p - p * change
    return torch.where(log_p == -torch.inf, log_q.exp(), torch.where(change.abs() < 1, near, far)).clamp_min(0.0)


def rest_mass(log_probs: Tensor, sampled: Tensor) -> Tensor:
    """1 - p(y) - sum of the listed probabilities, (..., K) and (...) -> (...); 0 where that rounds below 0."""
    return (-torch.expm1(sampled) - log_probs.exp().sum(-1)).clamp_min(0.0)


def without_sampled(log_mu: Tensor, ids: Tensor, sampled_ids: Tensor) -> Tensor:
    """``log_mu`` with the entries that repeat the sampled token made absent; (..., K), (..., K), (...) -> (..., K)."""
    return log_mu.masked_fill(ids == sampled_ids.unsqueeze(-1), -torch.inf)


def log_probs_at(chosen: Tensor, sampled: Tensor, log_prob: Tensor) -> Tensor:
    """log pi at K tokens from their logits without a pass over the vocabulary: logit(k) - logit(y) + log pi(y).

    ``chosen`` (..., K) and ``sampled`` (...) are logits of the listed and the sampled tokens, divided by the sampling
    temperature like those of ``log_prob`` (...).
    """
    return chosen + (log_prob - sampled).unsqueeze(-1)


TOPK = {"tv": topk_tv, "kl": topk_kl}

# ---- coding

STEPS = 8191.75  # codes a unit of sqrt(-log p): 65534 codes reach down to log p = -64
NOTHING = 65535  # code of probability 0
HEADER = 2  # int16 words before the counts: the number of tokens


def encode_log_probs(log_probs: Tensor) -> Tensor:
    """16-bit codes of log-probs, uniform in sqrt(-log p), int16; log-probs below -64 become -64, -inf stays.

    The relative error of a decoded probability is at most sqrt(-log p) / STEPS. A TV from decoded log-probs is off by
    at most half the sum of p sqrt(-log p) / STEPS, by Jensen at most sqrt(H) / (2 STEPS) with H <= log(K + 2) the
    entropy of the categories in nats: 1.1e-4 at K = 20.
    """
    code = ((-log_probs.double()).clamp(0.0, 64.0).sqrt() * STEPS).round()
    code = code.masked_fill(log_probs == -torch.inf, NOTHING)
    return (code - 32768).to(torch.int16)


def decode_log_probs(codes: Tensor) -> Tensor:
    """float32 log-probs of int16 codes."""
    code = codes.float() + 32768
    return (-(code / STEPS).square()).masked_fill(code == NOTHING, -torch.inf)


def tv_coding_bound(k: int) -> float:
    """Largest error of a TV that coding can cause with K listed tokens (``encode_log_probs``)."""
    return math.sqrt(math.log(k + 2)) / (2 * STEPS)


def pack(ids: Tensor, log_probs: Tensor, sampled_ids: Tensor, sampled: Tensor, cutoff: float = 0.0) -> Tensor:
    """One response's top-K as a flat int16 vector: 6 bytes an entry, 4 a token, 4 a response (124 B a token at K = 20).

    Layout: number of tokens (32 bit); entries a token; code of the rest mass a token; then id (32 bit) and code of
    each entry. The sampled token is left out, for its id and log-prob travel with the response.

    Args:
        ids, log_probs: (tokens, columns) integer and floating, in any order; minus infinity marks an absent entry.
        sampled_ids, sampled: (tokens,) the sampled tokens and their log-probs.
        cutoff: entries of lower probability are dropped and their mass counts as rest; TV loses at most the sum of
            max(p, q) over them.
    """
    log_probs = without_sampled(log_probs.double(), ids, sampled_ids)
    if cutoff > 0:
        log_probs = log_probs.masked_fill(log_probs < math.log(cutoff), -torch.inf)
    listed = log_probs > -torch.inf
    rest = rest_mass(log_probs, sampled.double()).log()
    entries = torch.cat([_words(ids[listed]), encode_log_probs(log_probs[listed]).unsqueeze(-1)], -1)
    head = _words(torch.tensor(sampled_ids.shape))
    return torch.cat([head.flatten(), listed.sum(-1).to(torch.int16), encode_log_probs(rest), entries.flatten()])


def unpack(packed: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (tokens, k) int64, mu's log-probs (tokens, k) float32 (0, minus infinity where absent); its rest (tokens,).

    Raises:
        ValueError: a token has more than ``k`` entries.
    """
    tokens = int(_numbers(packed[:HEADER].view(1, 2)))
    counts = packed[HEADER : HEADER + tokens].long()
    start = HEADER + 2 * tokens
    if bool((counts > k).any()):
        raise ValueError(f"a packed top-K has {int(counts.max())} entries at a token, more than topk={k}")
    entries = packed[start:].view(-1, 3)
    listed = torch.arange(k, device=packed.device) < counts.unsqueeze(-1)
    ids = torch.zeros_like(listed, dtype=torch.long)
    log_mu = torch.full(listed.shape, -torch.inf, device=packed.device)
    ids[listed] = _numbers(entries[:, :2])
    log_mu[listed] = decode_log_probs(entries[:, 2])
    return ids, log_mu, decode_log_probs(packed[HEADER + tokens : start]).exp()


def _words(numbers: Tensor) -> Tensor:
    """(n,) integers from 0 to 2^31 - 1 as (n, 2) int16, low word first."""
    return numbers.to(torch.int32).view(torch.int16).view(-1, 2)


def _numbers(words: Tensor) -> Tensor:
    """Inverse of ``_words``, int64, (n, 2) -> (n,)."""
    words = words.long()
    return (words[:, 0] & 0xFFFF) | (words[:, 1] << 16)
