"""The algorithms once more, written from the papers as plain loops over one response in float64.

Shares no line with the package and imports neither torch nor verl: slow, literal, and meant to be read beside
arXiv 2606.10968. A response is a set of equally long lists over columns; ``valid`` says which columns hold its tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mpmath

Numbers = Sequence[float]


def tv(log_pi: float, log_mu: float) -> float:
    return abs(math.exp(log_pi) - math.exp(log_mu))


def kl(log_pi: float, log_mu: float) -> float:
    """KL(mu || pi) of {token, rest}; infinite where pi excludes what mu does not."""
    p, not_p, not_q = math.exp(log_mu), -math.expm1(log_mu), -math.expm1(log_pi)
    if (p > 0 and log_pi == -math.inf) or (not_p > 0 and not_q == 0):
        return math.inf
    value = p * (log_mu - log_pi) if p > 0 else 0.0
    if not_p > 0:
        value += not_p * (math.log(not_p) - math.log(not_q))
    return max(value, 0.0)


def kl_to_60_digits(log_pi: float, log_mu: float) -> mpmath.mpf:
    """The same KL of exactly these two floats, without rounding that matters; both must be below 0."""
    with mpmath.workdps(60):
        lp, lq = mpmath.mpf(log_mu), mpmath.mpf(log_pi)
        p, not_p, not_q = mpmath.exp(lp), -mpmath.expm1(lp), -mpmath.expm1(lq)
        return p * (lp - lq) + not_p * mpmath.log(not_p / not_q)


DIVERGENCE = {"tv": tv, "kl": kl}


def ratio(log_pi: float, log_mu: float) -> float:
    return math.exp(min(max(log_pi - log_mu, -20.0), 20.0))


def linear_weights(valid: Sequence[bool], w_min: float) -> list[float]:
    """Eq. 9 with T the response's own number of valid tokens; 0 at invalid columns."""
    length, t, weights = sum(valid), 0, []
    for ok in valid:
        t += ok
        w = 1.0 if length == 1 else 1 - (1 - w_min) * (t - 1) / (length - 1)
        weights.append(w if ok else 0.0)
    return weights


def linear_weights_by_column(valid: Sequence[bool], w_min: float, max_length: int | None) -> list[float]:
    """Eq. 9 with T the maximum length and t the absolute position; beyond the maximum the last weight stays."""
    horizon = len(valid) if max_length is None else max_length
    weights = []
    for column, ok in enumerate(valid):
        t = min(column + 1, horizon)
        w = 1.0 if horizon == 1 else 1 - (1 - w_min) * (t - 1) / (horizon - 1)
        weights.append(w if ok else 0.0)
    return weights


def quantile(values: Numbers, q: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    rank = q * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def quantile_budget(values: Numbers, floor: float, q: float = 0.9, scale: float = 1.0, cap: float = 2.0) -> float:
    """Eq. 22 on the divergences of the valid tokens."""
    if not values:
        return floor
    return min(max(scale * quantile(values, q), floor), cap * floor)


@dataclass
class Decision:
    """What Algorithm 1 did with one token: the numbers it compared and what came out."""

    kept: bool
    toward: bool
    over_token: bool
    spending: float
    threshold: float
    spent_after: float
    weight_after: float

    @property
    def margin(self) -> float:
        return abs(self.spending - self.threshold)


@dataclass
class Response:
    """One response: columns of log pi, log mu, A and validity."""

    log_pi: Numbers
    log_mu: Numbers
    advantages: Numbers
    valid: Sequence[bool]

    @property
    def columns(self) -> list[int]:
        return [i for i, ok in enumerate(self.valid) if ok]

    def divergences(self, kind: str) -> list[float]:
        """D_t of the valid tokens, in order."""
        return [DIVERGENCE[kind](self.log_pi[i], self.log_mu[i]) for i in self.columns]


def algorithm_1(
    response: Response, kind: str, weights: Numbers, delta: float, delta_b: float | None
) -> dict[int, Decision]:
    """Algorithm 1, token by token; ``delta_b`` None leaves out the prefix budget. Keys are the valid columns."""
    decisions = {}
    spent = weight = 0.0
    for i, d in zip(response.columns, response.divergences(kind), strict=True):
        z = weights[i] * d
        c = delta if delta_b is None else min(delta, delta + delta_b * weight - spent)
        toward = response.advantages[i] * (ratio(response.log_pi[i], response.log_mu[i]) - 1) <= 0
        spent += z
        weight += weights[i]
        decisions[i] = Decision(toward or z <= c, toward, z > delta, z, c, spent, weight)
    return decisions


def soft_gate(
    response: Response, kind: str, weights: Numbers, delta: float, delta_b: float | None, g
) -> dict[int, float]:
    """Appendix C: g(max(w_t D_t / delta, S_t / (delta + delta_b W_{t-1}))); 1 for the first clause."""
    gates = {}
    spent = weight = 0.0
    for i, d in zip(response.columns, response.divergences(kind), strict=True):
        spent += weights[i] * d
        x = weights[i] * d / delta
        if delta_b is not None:
            x = max(x, spent / (delta + delta_b * weight))
        weight += weights[i]
        toward = response.advantages[i] * (ratio(response.log_pi[i], response.log_mu[i]) - 1) <= 0
        gates[i] = 1.0 if toward else g(x)
    return gates


def coefficient(response: Response, column: int, ratio_cap: float = 20.0) -> float:
    """-A_t min(rho_t, cap): what multiplies grad log pi(y_t) of a kept token in the loss."""
    return -response.advantages[column] * min(ratio(response.log_pi[column], response.log_mu[column]), ratio_cap)


def logged_shares(responses: Sequence[Response], kind: str, decided: Sequence[dict[int, Decision]]) -> dict[str, float]:
    """The logger's numbers as means over the valid tokens of responses with an advantage other than 0."""
    seen, divergences = [], []
    for response, decisions in zip(responses, decided, strict=True):
        if any(response.advantages[i] != 0 for i in response.columns):
            seen += [(response, i, decisions[i]) for i in response.columns]
            divergences += response.divergences(kind)
    masked = [(r, i, d) for r, i, d in seen if not d.kept]
    total = max(len(seen), 1)
    rank = math.ceil(0.99 * len(seen))  # nearest rank, from 1
    return {
        "masked_share": len(masked) / total,
        "masked_share_token_threshold": sum(d.over_token for _, _, d in masked) / total,
        "masked_share_prefix_budget": sum(not d.over_token for _, _, d in masked) / total,
        "masked_share_positive": sum(r.advantages[i] > 0 for r, i, _ in masked) / total,
        "masked_share_negative": sum(r.advantages[i] < 0 for r, i, _ in masked) / total,
        "divergence_mean": sum(divergences) / total,
        "divergence_p99": sorted(divergences)[rank - 1] if seen else 0.0,
        "divergence_max": max(divergences, default=0.0),
        "ratio_capped_share": sum(ratio(r.log_pi[i], r.log_mu[i]) > 20 for r, i, _ in seen) / total,
    }


def mean_by_position(lengths: Sequence[int], values: Sequence[Numbers], bins: int) -> list[float]:
    """Mean of per-token values over equal bins of t/T, bin b being (b/bins, (b+1)/bins]."""
    sums, counts = [0.0] * bins, [0] * bins
    for length, row in zip(lengths, values, strict=True):
        for t, value in enumerate(row, start=1):
            b = -(-bins * t // length) - 1
            sums[b] += value
            counts[b] += 1
    return [s / c if c else 0.0 for s, c in zip(sums, counts, strict=True)]
