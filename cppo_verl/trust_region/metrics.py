"""Numbers for the logger, computed beside the mask that causes them.

Everything is kept as sums and counts, so that micro-batches of any size on any number of ranks add up to the exact
figure of the whole batch; only ``divergence_p99`` is an average of micro-batch quantiles. Responses whose advantages
are all zero do not enter (their group has zero reward variance, or they pad the batch).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cppo_verl.trust_region.bound import residual_constant
from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.tokens import MAX_LOG_RATIO, Tokens

PREFIX = "actor/trust_region/"
DIVERGENCE_BINS = 8
MASK_BINS = 10
PARTS = 40  # of a response's length, from which both kinds of bins are made
P99_SAMPLE = 32_768  # tokens a micro-batch that the 99th percentile looks at, evenly spaced
FIRST_UPDATE = ("divergence_mean", "divergence_p99", "masked_share")  # also reported for the first update of a step
FINITE = ("advantage", "running")  # infinite or NaN where an advantage or a divergence is
Rows: TypeAlias = dict[str, np.ndarray]  # float64, a row a response
RESPONSE_METRICS = (  # means over responses; the others are over tokens
    *("prefix_average", "effective_delta_b", "influence_weighted_divergence"),
    *("bound_realised", "bound_worst_case"),
)


@dataclass(frozen=True)
class MetricSums:
    """Plain floats: numerators by metric, their denominators by name, and metrics that combine by maximum instead."""

    sums: Mapping[str, float]
    counts: Mapping[str, float]
    maxima: Mapping[str, float]

    def means(self) -> dict[str, float]:
        """The metrics themselves, under ``PREFIX``; one whose denominator is 0 is 0."""
        values = {name: ratio(total, self.counts[denominator_of(name)]) for name, total in self.sums.items()}
        return {PREFIX + name: value for name, value in {**values, **self.maxima}.items()}


def combine(parts: Iterable[MetricSums]) -> MetricSums:
    """The sums of several micro-batches, or of several ranks, as those of the whole batch."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    maxima: dict[str, float] = {}
    for part in parts:
        sums |= {name: sums.get(name, 0.0) + value for name, value in part.sums.items()}
        counts |= {name: counts.get(name, 0.0) + value for name, value in part.counts.items()}
        maxima |= {name: max(maxima.get(name, value), value) for name, value in part.maxima.items()}
    return MetricSums(sums, counts, maxima)


def denominator_of(name: str) -> str:
    """Which count a metric's sum is divided by."""
    if name in RESPONSE_METRICS:
        return "responses"
    if name == "bound_usage":
        return "bound_worst_case"
    if "importance" in name:
        return "importance_responses" if name.startswith("response_") else "importance_tokens"
    return f"{name}/tokens" if "_by_" in name else "tokens"


def ratio(total: float, count: float) -> float:
    """total / count, and 0 for an empty count."""
    return total / count if count else 0.0


def summarise(tokens: Tokens, divergence: Tensor, verdict: Verdict, ratio_cap: float) -> MetricSums:
    """Sums of one micro-batch: the device makes a few numbers a response, and one transfer brings them to the host.

    Args:
        divergence: (batch, length) D_t, 0 at invalid positions.

    Raises:
        FloatingPointError: a log-prob or advantage is not finite; says which tensor, how many tokens, which rows.
    """
    if divergence.numel() == 0:
        return MetricSums({}, {"tokens": 0.0, "responses": 0.0}, {})
    stride = -(-divergence.numel() // P99_SAMPLE)
    with torch.no_grad():
        rows = on_the_host(_measure(tokens, divergence, verdict, ratio_cap) | {"p99": divergence.flatten()[::stride]})
    rows["over_token"], rows["raised"] = rows.pop("masked")
    rows["capped"], rows["above_zero"] = rows.pop("counted")
    # a ratio at its bound may come of an infinite log-prob
    if not (rows["log_ratio"] < MAX_LOG_RATIO).all() or not all(np.isfinite(rows[name]).all() for name in FINITE):
        refuse_nonfinite(tokens, divergence)

    active = rows["advantage"] > 0
    sample = rows.pop("p99")
    sample = sample[active[np.arange(sample.size) * stride // divergence.shape[-1]]]
    rows = {name: values[active] for name, values in rows.items()}
    length, total, masked = rows["length"], rows["divergence"][:, -1], rows["removed"][:, -1].sum()
    drift = rows["running"] - total  # sum_t (T - t) D_t
    counts = {"tokens": length.sum(), "responses": active.sum()}
    sums = {
        "masked_share": masked,
        "masked_share_token_threshold": rows["over_token"].sum(),
        "masked_share_prefix_budget": max(masked - rows["over_token"].sum(), 0.0),  # a soft gate's sums round
        "masked_share_positive": rows["raised"].sum(),
        "masked_share_negative": max(masked - rows["raised"].sum(), 0.0),
        "ratio_capped_share": rows["capped"].sum(),
        "positive_log_prob_share": rows["above_zero"].sum(),
        "divergence_mean": total.sum(),
        "divergence_p99": _nearest_rank(sample, counts["tokens"] / stride) * counts["tokens"],
    }

    sums["influence_weighted_divergence"] = (drift / np.maximum(length * (length - 1) / 2, 1)).sum()
    sums["prefix_average"] = (total / length).sum()
    if verdict.prefix is not None:
        sums["prefix_average"] = (rows["spent"] / rows["weight"]).sum()
        sums["effective_delta_b"] = rows["delta_b"].sum()
    if verdict.thresholds is not None:
        # Theorem 1, xi = 1: sum_t lambda_t D_t with lambda_t = 4 lbar (T - t), and its bound
        token_bound = verdict.thresholds.token_bound
        sums["bound_realised"] = sums["bound_usage"] = (4 * token_bound * drift).sum()
        sums["bound_worst_case"] = residual_constant(length, token_bound, rows["bound_delta_b"]).sum()
        counts["bound_worst_case"] = sums["bound_worst_case"]

    for name, of, bins in (("divergence", "divergence", DIVERGENCE_BINS), ("masked_share", "removed", MASK_BINS)):
        ends = np.floor(length[:, None] * np.arange(bins + 1) / bins)
        up_to = np.where(ends == 0, 0.0, rows[of][:, :: PARTS // bins])  # before the first token there is no column
        for i, (found, number) in enumerate(zip(np.diff(up_to).sum(0), np.diff(ends).sum(0), strict=True)):
            sums[f"{name}_by_position/{i}"], counts[f"{name}_by_position/{i}/tokens"] = found, number
    maxima = {"divergence_max": rows["divergence_max"].max(initial=0.0), "nonfinite_tokens_max": 0.0}
    return MetricSums(*({name: float(value) for name, value in part.items()} for part in (sums, counts, maxima)))


def _measure(tokens: Tokens, divergence: Tensor, verdict: Verdict, ratio_cap: float) -> dict[str, Tensor]:
    """What the sums are made of, on the device: numbers a response, (batch,), or its parts, (batch, PARTS + 1)."""
    removed, length, so_far = removed_part(verdict, tokens.mask), tokens.ordinal[:, -1:], divergence.cumsum(-1)
    # running sums at the last token of each part of a response
    ends = length * torch.arange(PARTS + 1, device=length.device, dtype=length.dtype)
    ends = ends.div_(PARTS, rounding_mode="floor")
    at_ends = torch.searchsorted(tokens.ordinal, ends)
    capped = tokens.ratio > ratio_cap if verdict.capped is None else verdict.capped & tokens.mask
    above_zero = torch.maximum(tokens.log_prob, tokens.old_log_prob) > 0
    flags = torch.stack([verdict.over_token, tokens.advantages > 0, capped, above_zero])
    rows = {
        "log_ratio": torch.linalg.vector_norm(tokens.log_ratio, torch.inf, -1),
        "advantage": torch.linalg.vector_norm(tokens.advantages, 1, -1),
        "running": (so_far * tokens.mask).sum(-1),  # sum_t (D_1 + ... + D_t) = sum_t (T - t + 1) D_t
        "length": length.squeeze(-1),
        "divergence_max": divergence.amax(-1),
        "masked": row_sums(flags[:2] * removed),
        "counted": row_sums(flags[2:]),
        "divergence": so_far.gather(-1, at_ends),
        "removed": removed.cumsum(-1, dtype=divergence.dtype).gather(-1, at_ends),
    }
    if verdict.prefix is not None:
        rows |= verdict.prefix._asdict()
    if verdict.thresholds is not None:
        delta_b = verdict.thresholds.delta_b
        rows["bound_delta_b"] = delta_b if isinstance(delta_b, Tensor) else torch.full_like(rows["length"], delta_b)
    return rows


def removed_part(verdict: Verdict, mask: Tensor) -> Tensor:
    """How much of each valid token's update the rule took away, (batch, length): bool, or 1 - gate, at most 1."""
    if verdict.gate.dtype == torch.bool:
        return mask > verdict.gate  # valid and not kept
    return (1 - verdict.gate).clamp_max(1.0) * mask


def row_sums(values: Tensor) -> Tensor:
    """Sum over the last dimension; of bools as whole numbers, read as bytes, which takes a quarter of the time."""
    return values.view(torch.int8).sum(-1, dtype=torch.int32) if values.dtype == torch.bool else values.sum(-1)


def on_the_host(rows: dict[str, Tensor]) -> Rows:
    """The same as float64 arrays, after one transfer."""
    together = torch.cat([x.reshape(-1) for x in rows.values()]).cpu().numpy().astype(np.float64)
    parts = np.split(together, np.cumsum([x.numel() for x in rows.values()])[:-1])
    return {name: part.reshape(x.shape) for (name, x), part in zip(rows.items(), parts, strict=True)}


def _nearest_rank(values: np.ndarray, tokens: float) -> float:
    """99th percentile of ``tokens`` values, of which ``values`` has the highest; 0 without any."""
    if not values.size:
        return 0.0
    place = min(int(tokens) // 100, values.size - 1)  # from the top
    return float(-np.partition(-values, place)[place])


def nonfinite(tokens: Tokens) -> dict[str, Tensor]:
    """By tensor, which valid tokens are not finite, (batch, length) bool.

    Minus infinity in ``log_prob`` is no fault: the trained policy may exclude a token. In ``old_log_prob`` it is one:
    what was sampled had a probability.
    """
    return {
        "log_prob": (tokens.log_prob.isnan() | (tokens.log_prob == torch.inf)) & tokens.mask,
        "old_log_prob": ~tokens.old_log_prob.isfinite() & tokens.mask,
        "advantages": ~tokens.advantages.isfinite() & tokens.mask,
    }


def refuse_nonfinite(tokens: Tokens, divergence: Tensor) -> None:
    """Raise FloatingPointError with tensor, number of tokens and rows, if what is not finite is a fault."""
    faults = []
    for name, bad in nonfinite(tokens).items():
        rows = bad.any(-1).nonzero().flatten().tolist()
        if rows:
            faults.append(f"{name}: {int(bad.sum())} tokens in rows {rows[:8]}{'...' if len(rows) > 8 else ''}")
    if not faults and not bool(divergence.isfinite().all()):
        faults = ["the divergence, of finite log-probs"]
    if faults:
        raise FloatingPointError(
            f"non-finite values in the policy loss of this micro-batch: {'; '.join(faults)}. "
            "The optimizer step was not taken."
        )
