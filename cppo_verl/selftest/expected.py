"""What a rule must decide, by its definition in float64 on the CPU, and within which rounding of float32.

Shares no line with ``trust_region.rules``: each rule once more, from the equations of arXiv 2606.10968. Every number
comes with a bound on what float32 arithmetic may do to it, so that a decision is either certain or excused:

- inputs are what the device got, so they carry no error; a difference, product or quotient is rounded by U;
- exp is right to 2 units in the last place (what CUDA's single-precision exp promises; the CPU's is better);
- a running sum of t terms adds in blocks, as torch's scans do: at most 32 + t / 256 roundings deep;
- the binary KL is computed in float64 and rounded once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cppo_verl.selftest.batches import Batch
from cppo_verl.trust_region import topk
from cppo_verl.trust_region.knobs import TrustRegionKnobs

U = 2.0**-24  # of float32: largest relative error of one rounding
EXP = 4 * U
FLOAT64 = 1e-13  # of a float64 computation with cancellation


@dataclass(frozen=True)
class Rounded:
    """A float64 value and the largest error that a float32 computation of it may have."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class Range:
    """Where a gate or weight may lie: ``low`` <= x <= ``high``, float64, equal where nothing is left to rounding."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Case:
    """A rule's input: the batch in float64 as the device got it, D_t, and the knobs."""

    batch: Batch
    divergence: Rounded
    knobs: TrustRegionKnobs
    shuffled: Tensor | None = None  # w_t of ``weights=shuffled``, a permutation that the package chose

    @property
    def toward(self) -> Tensor:
        """First clause: A_t (pi - mu) <= 0. A float difference is 0 only for equal numbers, so this is exact."""
        b = self.batch
        return b.advantages.sign() * (b.log_prob - b.old_log_prob) <= 0

    @property
    def position(self) -> Tensor:
        """t of each valid token."""
        return self.batch.mask.double().cumsum(-1)


# ---- divergences


def binary(log_pi: Tensor, log_mu: Tensor, kind: str) -> Rounded:
    """D_t of {sampled token, rest}; arguments are (batch, length) float64 below 0."""
    p, q = log_mu.exp(), log_pi.exp()
    if kind == "tv":
        value = (q - p).abs()
        return Rounded(value, EXP * (p + q) + U * value)
    not_p, not_q = -torch.expm1(log_mu), -torch.expm1(log_pi)
    value = (p * (log_mu - log_pi) + not_p * (not_p.log() - not_q.log())).clamp_min(0)
    return Rounded(value, U * value + FLOAT64 * (1 + value))


def top_k(batch: Batch, kind: str) -> Rounded:
    """D_t of {mu's top-K, sampled token, rest}, the rest computed from the listed log-probs."""
    assert batch.topk is not None
    listed = batch.topk.log_mu > -torch.inf
    p_k, q_k = (x.exp() * listed for x in (batch.topk.log_mu, batch.topk.log_pi))
    p_y, q_y = batch.old_log_prob.exp(), batch.log_prob.exp()
    terms = listed.sum(-1) + 2
    p_rest, q_rest = (_rest(log_y, k, terms) for log_y, k in ((batch.old_log_prob, p_k), (batch.log_prob, q_k)))
    if kind == "tv":
        value = 0.5 * ((q_k - p_k).abs().sum(-1) + (q_y - p_y).abs() + (q_rest.value - p_rest.value).abs())
        error = EXP * (p_k.sum(-1) + q_k.sum(-1) + p_y + q_y) + p_rest.error + q_rest.error + 2 * terms * U * value
        # log-probs in half precision need not sum to 1; the finer partition must not fall below the coarser one
        return Rounded(torch.maximum(value, (q_y - p_y).abs()).clamp_max(1), error)
    floors = (
        Rounded(p_rest.value.clamp_min(topk.REST_FLOOR), p_rest.error),
        Rounded(q_rest.value.clamp_min(topk.REST_FLOOR), q_rest.error),
    )
    change_k = torch.where(listed, batch.topk.log_pi - batch.topk.log_mu, 0.0)
    change_y = batch.log_prob - batch.old_log_prob
    parts = [_kl_part(p_k, q_k, change_k), _kl_part(p_y.unsqueeze(-1), q_y.unsqueeze(-1), change_y.unsqueeze(-1))]
    value = sum((part.value.sum(-1) for part in parts), _kl_rest(*floors).value)
    error = sum((part.error.sum(-1) for part in parts), _kl_rest(*floors).error)
    return Rounded(value.clamp_min(0), error + 2 * terms * U * value.abs())


def _rest(log_y: Tensor, others: Tensor, terms: Tensor) -> Rounded:
    mass = others.sum(-1)
    value = (-torch.expm1(log_y) - mass).clamp_min(0)
    return Rounded(value, EXP * (-torch.expm1(log_y) + mass) + terms * U * mass + U * value)


def _kl_part(p: Tensor, q: Tensor, change: Tensor) -> Rounded:
    """q - p + p log(p/q), a category's share: never negative, and no cancellation near p = q."""
    return Rounded(q - p - p * change, EXP * (p + q) * change.abs().clamp(max=1) + 4 * EXP * p * change.abs() + U * q)


def _kl_rest(p: Rounded, q: Rounded) -> Rounded:
    """The same of the rest, whose masses are rounded themselves: first derivatives, doubled."""
    log_ratio = (p.value / q.value).log()
    value = q.value - p.value + p.value * log_ratio
    slope_p, slope_q = log_ratio.abs(), (1 - p.value / q.value).abs()
    return Rounded(value, 2 * (slope_p * p.error + slope_q * q.error) + EXP * (p.value + q.value))


# ---- weights and budgets


def weights(case: Case) -> Rounded:
    """w_t (Eq. 9 and its ablations), 0 at invalid positions."""
    mask, knobs = case.batch.mask, case.knobs
    if knobs.weights == "constant":
        return Rounded(mask.double(), torch.zeros_like(case.position))
    if case.shuffled is not None:
        w = case.shuffled
    elif knobs.horizon == "max":
        length = knobs.max_response_length or mask.shape[-1]
        column = torch.arange(mask.shape[-1], dtype=torch.float64)
        w = 1 - (1 - knobs.w_min) * (column / max(length - 1, 1)).clamp_max(1).expand(mask.shape)
    else:
        w = 1 - (1 - knobs.w_min) * (case.position - 1) / (mask.sum(-1, keepdim=True) - 1).clamp_min(1)
    return Rounded(w * mask, 4 * U * mask)


def budget(case: Case) -> Rounded:
    """delta_b of each response, (batch, 1): the number given, or Eq. 22."""
    knobs, d = case.knobs, case.divergence
    rows = len(d.value)
    if knobs.budget == "fixed":
        return Rounded(torch.full((rows, 1), knobs.delta_b, dtype=torch.float64), torch.full((rows, 1), U))
    values, errors = [], []
    for row, valid in enumerate(case.batch.mask):
        own = d.value[row][valid]
        quantile = own.quantile(knobs.budget_quantile) if len(own) else torch.zeros(())
        off = d.error[row][valid].max() if len(own) else torch.zeros(())
        values.append((knobs.budget_scale * quantile).clamp(knobs.delta_b, knobs.budget_cap * knobs.delta_b))
        errors.append(knobs.budget_scale * (off + 4 * U * quantile) + U * values[-1])
    return Rounded(torch.stack(values).unsqueeze(-1).double(), torch.stack(errors).unsqueeze(-1).double())


def running(x: Rounded, position: Tensor) -> Rounded:
    """Sum of the terms up to and including t."""
    total = x.value.cumsum(-1)
    return Rounded(total, x.error.cumsum(-1) + (32 + position / 256) * U * total)


# ---- rules


def within(value: Rounded, threshold: Rounded) -> Range:
    """value <= threshold, as 0 or 1; 0..1 where rounding may decide."""
    room, error = threshold.value - value.value, threshold.error + value.error
    return Range((room >= error).double(), (room >= -error).double())


def both(a: Range, b: Range) -> Range:
    """a and b."""
    return Range(torch.minimum(a.low, b.low), torch.minimum(a.high, b.high))


def unless(clause: Tensor, otherwise: Range) -> Range:
    """1 where the clause holds."""
    return Range(torch.where(clause, 1.0, otherwise.low), torch.where(clause, 1.0, otherwise.high))


def number(x: float, like: Tensor) -> Rounded:
    """A threshold, rounded once to float32."""
    value = torch.full_like(like, x)
    return Rounded(value, U * value.abs())


def dppo(case: Case) -> Range:
    """D_t <= delta (Eq. 3)."""
    return _hard(within(case.divergence, number(case.knobs.delta, case.divergence.value)), case)


def cppo(case: Case) -> Range:
    """w_t D_t <= min(delta, delta + delta_b W_{t-1} - S_{t-1}) (Eq. 8, 10), or the soft gate of both (App. C)."""
    w, d, knobs = weights(case), case.divergence, case.knobs
    z = Rounded(w.value * d.value, w.value * d.error + w.error * d.value + U * w.value * d.value)
    delta = number(knobs.delta, z.value)
    if knobs.budget == "none":
        return _soft([_over(z, delta)], case) if knobs.gate == "soft" else _hard(within(z, delta), case)
    b, spent, weight = budget(case), running(z, case.position), running(w, case.position)
    before = Rounded(weight.value - w.value, weight.error)  # W_{t-1}
    allowance = delta.value + b.value * before.value
    allowed = Rounded(allowance, delta.error + before.value * b.error + b.value * before.error + 3 * U * allowance)
    if knobs.gate == "soft":
        return _soft([_over(z, delta), _over(spent, allowed)], case)
    rounding = allowed.error + spent.error + U * (allowance + spent.value)
    left = Rounded(allowance - (spent.value - z.value), rounding)  # delta + delta_b W_{t-1} - S_{t-1}
    return _hard(both(within(z, delta), within(z, left)), case)


def _hard(kept: Range, case: Case) -> Range:
    """0 where not kept and no first clause; ``gate=restore`` turns that into -restore_strength."""
    kept = unless(case.toward, kept)
    if case.knobs.gate != "restore":
        return kept
    strength = case.knobs.restore_strength
    low, high = ((1 + strength) * x - strength for x in (kept.low, kept.high))
    return Range(low - U, high + U)


def _over(value: Rounded, threshold: Rounded) -> Rounded:
    x = value.value / threshold.value
    return Rounded(x, (value.error + x * threshold.error) / threshold.value + 2 * U * x)


def _soft(excesses: list[Rounded], case: Case) -> Range:
    """g of the largest excess; g is 1.5-Lipschitz for both attenuations."""
    x = torch.stack([e.value for e in excesses]).amax(0).clamp_min(1)
    error = 1.5 * torch.stack([e.error for e in excesses]).amax(0) + 16 * U
    s = torch.sigmoid(x - 1)
    g = 1 / x if case.knobs.attenuation == "inverse" else 4 * s * (1 - s) / x
    return unless(case.toward, Range(g - error, g + error))


def trm_max(case: Case) -> Range:
    """The whole response iff max_t D_t <= delta."""
    d, mask = case.divergence, case.batch.mask
    largest = Rounded((d.value * mask).amax(-1, keepdim=True), (d.error * mask).amax(-1, keepdim=True))
    return _spread(within(largest, number(case.knobs.delta, largest.value)), mask)


def trm_avg(case: Case, threshold: float | None = None) -> Range:
    """The whole response iff mean_t D_t <= delta."""
    d, mask = case.divergence, case.batch.mask
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    mean, error = ((x * mask).sum(-1, keepdim=True) / count for x in (d.value, d.error))
    limit = number(case.knobs.delta if threshold is None else threshold, mean)
    return _spread(within(Rounded(mean, error + 4 * U * mean), limit), mask)


def trm_max_avg(case: Case) -> Range:
    """Both, the mean against delta_b."""
    return both(trm_max(case), trm_avg(case, case.knobs.delta_b))


def _spread(rows: Range, mask: Tensor) -> Range:
    return Range(rows.low.expand(mask.shape), rows.high.expand(mask.shape))


def minpro(case: Case) -> Range:
    """The weight rho_t min_{j<t} rho_j, capped; nothing is masked."""
    b = case.batch
    ratio = (b.log_prob - b.old_log_prob).clamp(-20, 20).exp()
    smallest = torch.where(b.mask, ratio, torch.inf).cummin(-1).values
    before = torch.cat([torch.full_like(smallest[:, :1], torch.inf), smallest[:, :-1]], -1)
    weight = (ratio * torch.where(before.isinf(), 1.0, before)).clamp_max(case.knobs.ratio_cap)
    return Range(weight * (1 - 64 * U), weight * (1 + 64 * U))


GATES: dict[str, Callable[[Case], Range]] = {
    "dppo": dppo,
    "cppo": cppo,
    "trm_max": trm_max,
    "trm_avg": trm_avg,
    "trm_max_avg": trm_max_avg,
}
WEIGHTS: dict[str, Callable[[Case], Range]] = {"minpro": minpro}
