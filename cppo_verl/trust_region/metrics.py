"""Numbers for the logger, computed beside the mask that causes them.

Everything is kept as sums and counts, so that micro-batches of any size on any number of ranks add up to the exact
figure of the whole batch; only ``divergence_p99`` is an average of micro-batch quantiles. Responses whose advantages
are all zero do not enter (their group has zero reward variance, or they pad the batch).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cppo_verl.trust_region import bound
from cppo_verl.trust_region.gate import Thresholds, Verdict
from cppo_verl.trust_region.tokens import Tokens

PREFIX = "actor/trust_region/"
DIVERGENCE_BINS = 8
MASK_BINS = 10
PARTS = 40  # of a response's length, from which both kinds of bins are made
FIRST_UPDATE = ("divergence_mean", "divergence_p99", "masked_share")  # also reported for the first update of a step
Rows: TypeAlias = dict[str, Any]  # float64 arrays, mostly a number a response
P99_SAMPLE = 32_768  # tokens a micro-batch that the 99th percentile looks at, evenly spaced


# Means over responses; the others are over tokens.
RESPONSE_METRICS = (
    "prefix_average",
    "effective_delta_b",
    "influence_weighted_divergence",
    "bound_realised",
    "bound_worst_case",
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
        for whole, values in ((sums, part.sums), (counts, part.counts)):
            for name, value in values.items():
                whole[name] = whole.get(name, 0.0) + value
        for name, value in part.maxima.items():
            maxima[name] = max(value, maxima.get(name, value))
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
    """Sums of one micro-batch for the logger.

    The device makes a few numbers a response, which travel to the host in one transfer; everything smaller than
    (batch, length) is then computed there, where it costs no kernel. What hardly ever occurs (mixed signs in a
    response, ratios beyond the cap, log-probs above 0) is only looked for; it is counted, with a second transfer, where
    it was found.

    Args:
        divergence: (batch, length) D_t, 0 at invalid positions; overwritten.

    Raises:
        FloatingPointError: a log-prob or advantage is not finite; says which tensor, how many tokens, which rows.
    """
    with torch.no_grad():
        rows = (
            _no_rows(tokens, verdict) if divergence.numel() == 0 else _measure(tokens, divergence, verdict, ratio_cap)
        )
    finite = (np.isfinite(rows[name]).all() for name in ("divergence", "least_advantage", "largest_advantage"))
    if not all(finite):
        raise FloatingPointError(_name_the_nonfinite(tokens))

    active, length = rows["active"], rows["length"]
    tokens_in_all = float(length.sum())
    masked, over = float(rows["masked"][active, -1].sum()), float(rows["over_token"].sum())
    raised = rows["raised"].item()
    total = rows["divergence"][:, -1] * active
    sums = {
        "masked_share": masked,
        "masked_share_token_threshold": over,
        "masked_share_prefix_budget": masked - over,
        "masked_share_positive": raised,
        "masked_share_negative": masked - raised,
        "ratio_capped_share": rows["capped"].item(),
        "positive_log_prob_share": rows["rounded"].item(),
        "divergence_mean": float(total.sum()),
        "divergence_p99": _nearest_rank(rows["largest"], rows["sampled"].item()) * tokens_in_all,
    }
    counts = {"tokens": tokens_in_all, "responses": float(active.sum())}
    sums |= _response_sums(rows, total, verdict.thresholds)
    if "bound_usage" in sums:
        counts["bound_worst_case"] = sums["bound_worst_case"]
    for name, cumulative, bins in (
        ("divergence_by_position", rows["divergence"], DIVERGENCE_BINS),
        ("masked_share_by_position", rows["masked"], MASK_BINS),
    ):
        step = PARTS // bins
        for i in range(bins):
            a, b = i * step, (i + 1) * step
            sums[f"{name}/{i}"] = float((cumulative[active, b] - cumulative[active, a]).sum())
            counts[denominator_of(f"{name}/{i}")] = float((rows["edges"][active, b] - rows["edges"][active, a]).sum())
    largest = float((rows["divergence_max"] * active).max(initial=0.0))
    return MetricSums(sums, counts, {"divergence_max": largest, "nonfinite_tokens_max": 0.0})


def _measure(tokens: Tokens, divergence: Tensor, verdict: Verdict, ratio_cap: float) -> Rows:
    """What the sums are made of, on the host; ``divergence`` is overwritten."""
    advantages = tokens.advantages.masked_fill(tokens.invalid, 0.0)
    least, largest_advantage = advantages.amin(-1), advantages.amax(-1)  # aminmax is ten times slower on CPU
    nonzero = advantages.count_nonzero()
    del advantages
    active = least.logical_or(largest_advantage).unsqueeze(-1)  # anything but zeros
    mask = tokens.mask & active
    removed = removed_part(verdict, mask)
    found = {
        "length": tokens.ordinal[:, -1],
        "least_advantage": least,
        "largest_advantage": largest_advantage,
        "nonzero": nonzero,
        "over_token": _total(_both(removed, verdict.over_token)),
        "capped": tokens.ratio.amax() if verdict.capped is None else (verdict.capped & mask).count_nonzero(),
        "rounded": torch.maximum(tokens.log_prob, tokens.old_log_prob).amax(),
        "moment": torch.linalg.vecdot(tokens.ordinal, divergence),
        "divergence_max": divergence.amax(-1),
        **_sample(divergence, mask, active),
        **_prefix_rows(verdict),
    }
    columns = torch.searchsorted(tokens.ordinal, _edges(tokens.ordinal[:, -1:]))
    found["divergence"] = divergence.cumsum_(-1).gather(-1, columns)
    found["masked"] = divergence.copy_(removed).cumsum_(-1).gather(-1, columns)
    rows = _to_host(found, divergence.dtype)

    rows["active"] = (rows["least_advantage"] != 0) | (rows["largest_advantage"] != 0)
    rows["edges"] = np.floor(rows["length"][:, None] * np.arange(PARTS + 1) / PARTS)
    rows["length"] = np.where(rows["active"], rows["length"], 0.0)
    for name in ("divergence", "masked"):
        rows[name][rows["edges"] == 0] = 0.0
    rows.setdefault("sampled", rows["length"].sum())
    return rows | _rarities(rows, tokens, verdict, removed, mask, ratio_cap)


def _rarities(rows: Rows, tokens: Tokens, verdict: Verdict, removed: Tensor, mask: Tensor, ratio_cap: float) -> Rows:
    """The counts that are 0, or known from a response's sign, unless something unusual was found."""
    known, asked = {}, {}
    one_sign = (rows["least_advantage"] >= 0) | (rows["largest_advantage"] <= 0)
    if one_sign.all() and rows["nonzero"] == rows["length"].sum():
        known["raised"] = rows["masked"][rows["largest_advantage"] > 0, -1].sum()
    else:
        asked["raised"] = _total(_both(removed, tokens.advantages > 0))
    if verdict.capped is None:
        if rows["capped"] <= ratio_cap:
            known["capped"] = np.float64(0.0)
        else:
            asked["capped"] = ((tokens.ratio > ratio_cap) & mask).count_nonzero()
    if rows["rounded"] <= 0:
        known["rounded"] = np.float64(0.0)
    else:
        above = (tokens.log_prob > 0).logical_or_(tokens.old_log_prob > 0)
        asked["rounded"] = (above & mask).count_nonzero()
    if asked:
        known |= {name: x.sum() for name, x in _to_host(asked, tokens.ordinal.dtype).items()}
    return known


def _no_rows(tokens: Tokens, verdict: Verdict) -> Rows:
    """``_measure`` of a batch without any position."""
    batch = tokens.mask.shape[0]
    rows: Rows = {name: np.zeros(batch) for name in ("length", "least_advantage", "largest_advantage", "moment")}
    rows |= {name: np.zeros(batch) for name in ("divergence_max", *_prefix_rows(verdict))}
    rows |= {name: np.zeros((batch, PARTS + 1)) for name in ("divergence", "masked", "edges")}
    rows |= {name: np.float64(0.0) for name in ("over_token", "raised", "capped", "rounded", "sampled")}
    return rows | {"active": np.zeros(batch, dtype=bool), "largest": np.zeros(0)}


def _to_host(found: dict[str, Tensor], dtype: torch.dtype) -> Rows:
    """The same as float64 arrays, after one transfer; integers (0-d) go as the bits of floating numbers."""
    flat = [x.reshape(1).view(dtype) if x.dtype == torch.int64 else x.reshape(-1) for x in found.values()]
    together = torch.cat(flat).cpu().numpy()
    rows, start = {}, 0
    for (name, x), part in zip(found.items(), flat, strict=True):
        piece = together[start : start + part.numel()]
        start += part.numel()
        rows[name] = piece.copy().view(np.int64)[0] if x.dtype == torch.int64 else piece.reshape(x.shape)
        rows[name] = rows[name].astype(np.float64)
    return rows


def any_nonzero(x: Tensor) -> Tensor:
    """Whether a row holds anything but zeros, (batch,) bool; NaN counts as zero."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], dtype=torch.bool)
    return (x.amin(-1) < 0) | (x.amax(-1) > 0)  # aminmax is ten times slower on CPU


def removed_part(verdict: Verdict, mask: Tensor) -> Tensor:
    """How much of each valid token's update the rule took away: bool for a mask, else 1 - gate, at most 1."""
    if verdict.gate.dtype == torch.bool:
        return mask > verdict.gate
    return (1 - verdict.gate).clamp_max_(1.0).mul_(mask)


def _both(removed: Tensor, where: Tensor) -> Tensor:
    return removed & where if removed.dtype == torch.bool else torch.where(where, removed, 0.0)


def _total(x: Tensor) -> Tensor:
    """Sum over all tokens, or over each response; counts of bools are whole-tensor ones, which make no wider copy."""
    return x.count_nonzero() if x.dtype == torch.bool else x.sum(-1)


def _sample(divergence: Tensor, mask: Tensor, active: Tensor) -> dict[str, Tensor]:
    """The largest hundredth of at most ``P99_SAMPLE`` evenly spaced columns' D_t, and how many tokens those are."""
    stride = max(1, -(-divergence.numel() // P99_SAMPLE))
    sample = (divergence[:, ::stride] * active).flatten()
    found = {"largest": sample.topk(sample.numel() // 100 + 1).values}
    return found if stride == 1 else {**found, "sampled": mask[:, ::stride].count_nonzero()}


def _nearest_rank(largest: np.ndarray, tokens: float) -> float:
    """99th percentile of ``tokens`` values, of which ``largest`` are the highest, in falling order; 0 without any."""
    return float(largest[min(int(tokens) // 100, len(largest) - 1)]) if len(largest) else 0.0


def _edges(length: Tensor) -> Tensor:
    """Last ordinal of each of ``PARTS`` equal parts of a response, and 0 before them, (batch, PARTS + 1)."""
    return (length * _parts(length.device)).div_(PARTS, rounding_mode="floor").to(length.dtype)


@lru_cache(maxsize=16)
def _parts(device: torch.device) -> Tensor:
    return torch.arange(PARTS + 1, dtype=torch.float64, device=device)


def _prefix_rows(verdict: Verdict) -> dict[str, Tensor]:
    """(batch,) state of the prefix budget, and what Theorem 1 takes for delta_b where it differs a response."""
    rows = {}
    if verdict.prefix is not None:
        rows = {"spent": verdict.prefix.spent, "weight": verdict.prefix.weight, "delta_b": verdict.prefix.delta_b}
    if verdict.thresholds is not None and isinstance(verdict.thresholds.delta_b, Tensor):
        rows["bound_delta_b"] = verdict.thresholds.delta_b
    return rows


def _response_sums(rows: Rows, total: np.ndarray, thresholds: Thresholds | None) -> dict[str, float]:
    """Sums over the responses that count; the others have length 0."""
    active, length = rows["active"], rows["length"]
    drift = length * total - rows["moment"] * active  # sum_t (T - t) D_t
    pairs = length * (length - 1) / 2
    sums = {"influence_weighted_divergence": float((drift / np.maximum(pairs, 1)).sum())}
    if "spent" in rows:
        counted = active & (rows["weight"] > 0)
        sums["prefix_average"] = float((rows["spent"][counted] / rows["weight"][counted]).sum())
        sums["effective_delta_b"] = float(rows["delta_b"][active].sum())
    else:
        sums["prefix_average"] = float((total / np.maximum(length, 1)).sum())
    if thresholds is not None:
        token_bound = thresholds.token_bound
        delta_b = rows.get("bound_delta_b", thresholds.delta_b)
        sums["bound_realised"] = float((4 * token_bound * drift).sum())  # sum_t lambda_t D_t with xi = 1
        sums["bound_worst_case"] = float(np.sum(bound.residual_constant(length, token_bound, delta_b)))
        sums["bound_usage"] = sums["bound_realised"]
    return sums


def nonfinite(tokens: Tokens) -> dict[str, Tensor]:
    """By tensor, where it is NaN or infinite, (batch, length) bool; a log-prob of minus infinity is no fault."""
    values = {"log_prob": tokens.log_prob, "old_log_prob": tokens.old_log_prob}
    bad = {name: x.isnan() | (x == torch.inf) for name, x in values.items()}
    return {name: x & tokens.mask for name, x in {**bad, "advantages": ~tokens.advantages.isfinite()}.items()}


def _name_the_nonfinite(tokens: Tokens) -> str:
    lines = []
    for name, bad in nonfinite(tokens).items():
        if bool(bad.any()):
            rows = bad.any(-1).nonzero().flatten().tolist()
            lines.append(f"{name}: {int(bad.sum())} tokens in rows {rows[:8]}{'...' if len(rows) > 8 else ''}")
    cause = "; ".join(lines) or "the divergence, of finite log-probs"
    return f"non-finite values in the policy loss of this micro-batch: {cause}. The optimizer step was not taken."
