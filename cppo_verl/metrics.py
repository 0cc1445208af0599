"""Numbers for the logger, computed beside the mask that causes them.

Everything is kept as sums and counts, so that micro-batches of any size on any number of ranks add up to the exact
figure of the whole batch; only ``divergence_p99`` is an average of micro-batch quantiles. Responses whose advantages
are all zero do not enter (their group has zero reward variance, or they pad the batch).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cppo_verl.rules import Tokens, Verdict

PREFIX = "actor/trust_region/"
DIVERGENCE_BINS = 8
MASK_BINS = 10
FIRST_UPDATE = ("divergence_mean", "divergence_p99", "masked_share")  # also reported for the first update of a step
P99_SAMPLE = 65_536  # tokens a micro-batch that the 99th percentile looks at, evenly spaced


RESPONSE_METRICS = ("prefix_average", "effective_delta_b")  # means over responses; the others are over tokens


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


def denominator_of(name: str) -> str:
    """Which count a metric's sum is divided by."""
    if name in RESPONSE_METRICS:
        return "responses"
    return f"{name}/tokens" if "_by_position/" in name else "tokens"


def ratio(total: float, count: float) -> float:
    """total / count, and 0 for an empty count."""
    return total / count if count else 0.0


def summarise(tokens: Tokens, divergence: Tensor, verdict: Verdict, ratio_cap: float, loss: Tensor) -> MetricSums:
    """Sums of one micro-batch for the logger, with a single transfer from the device.

    Args:
        divergence: (batch, length) D_t, 0 at invalid positions.
        loss: 0-d, the policy loss; its finiteness is checked in the same transfer.

    Raises:
        FloatingPointError: the loss or a divergence is not finite; says which tensor, how many tokens, which rows.
    """
    with torch.no_grad():
        active = (tokens.advantages * tokens.mask != 0).any(-1)
        mask = tokens.mask & active.unsqueeze(-1)
        divergence = divergence.masked_fill(~mask, 0.0)
        scalars = _token_sums(tokens, divergence, verdict, ratio_cap, mask)
        scalars |= _response_sums(tokens, divergence, verdict, active)
        counts = {"tokens": mask.sum(), "responses": active.sum()}
        by_position, position_counts = _position_sums(tokens, divergence, _removed(verdict, mask), active)
        maximum = divergence.amax() if divergence.numel() else divergence.new_zeros(())
        head = [*scalars.values(), *counts.values(), maximum, loss.detach()]
        flat = torch.cat([torch.stack([x.double() for x in head]), by_position, position_counts]).tolist()

    values, tail = flat[: len(head)], flat[len(head) :]
    if not all(map(_finite, flat)):
        raise FloatingPointError(_name_the_nonfinite(tokens, values[-1]))
    sums = dict(zip(scalars, values, strict=False))
    totals = dict(zip(counts, values[len(scalars) :], strict=False))
    names = [f"divergence_by_position/{i}" for i in range(DIVERGENCE_BINS)]
    names += [f"masked_share_by_position/{i}" for i in range(MASK_BINS)]
    for i, name in enumerate(names):
        sums[name], totals[denominator_of(name)] = tail[i], tail[len(names) + i]
    return MetricSums(sums, totals, {"divergence_max": values[-2]})


def _removed(verdict: Verdict, mask: Tensor) -> Tensor:
    """How much of each valid token's update the rule took away: bool for a mask, 1 - gate for a soft gate."""
    return mask & ~verdict.gate if verdict.gate.dtype == torch.bool else (1 - verdict.gate) * mask


def _token_sums(tokens: Tokens, divergence: Tensor, verdict: Verdict, ratio_cap: float, mask: Tensor) -> dict:
    removed = _removed(verdict, mask)
    total = removed.sum()
    by_token = (removed * verdict.over_token).sum()
    positive = (removed * (tokens.advantages > 0)).sum()
    capped = tokens.ratio > ratio_cap if verdict.capped is None else verdict.capped
    return {
        "masked_share": total,
        "masked_share_token_threshold": by_token,
        "masked_share_prefix_budget": total - by_token,
        "masked_share_positive": positive,
        "masked_share_negative": total - positive,
        "divergence_mean": divergence.sum(dtype=torch.float64),
        "divergence_p99": _p99(divergence, mask) * mask.sum(),
        "ratio_capped_share": (capped & mask).sum(),
    }


def _p99(divergence: Tensor, mask: Tensor) -> Tensor:
    """99th percentile (nearest rank) over at most ``P99_SAMPLE`` evenly spaced tokens, 0-d; 0 without valid tokens."""
    stride = -(-divergence.numel() // P99_SAMPLE) or 1
    sample, valid = divergence.flatten()[::stride], mask.flatten()[::stride]
    if sample.numel() == 0:
        return divergence.new_zeros(())
    largest = sample.masked_fill(~valid, 0.0).topk(sample.numel() // 100 + 1).values
    return largest[(valid.sum() // 100).clamp_max(largest.numel() - 1)]


def _response_sums(tokens: Tokens, divergence: Tensor, verdict: Verdict, active: Tensor) -> dict:
    if verdict.prefix is None:
        spent, weight = divergence.sum(-1), tokens.mask.sum(-1)
        return {"prefix_average": (spent / weight.clamp_min(1) * active).sum()}
    prefix = verdict.prefix
    average = torch.where(prefix.weight > 0, prefix.spent / prefix.weight, 0.0)
    return {
        "prefix_average": torch.where(active, average, 0.0).sum(),
        "effective_delta_b": torch.where(active, prefix.delta_b, 0.0).sum(),
    }


def _position_sums(tokens: Tokens, divergence: Tensor, removed: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and token counts over equal bins of the relative position in a response, float64 vectors.

    The first ``DIVERGENCE_BINS`` entries are of the divergence, the other ``MASK_BINS`` of what was masked.
    """
    sums, counts = [], []
    for values, bins in ((divergence, DIVERGENCE_BINS), (removed, MASK_BINS)):
        edges = _bin_edges(tokens.ordinal, bins)
        cumulative = torch.nn.functional.pad(values.cumsum(-1, dtype=torch.float32), (1, 0))
        columns = torch.searchsorted(tokens.ordinal, edges.to(tokens.ordinal.dtype), right=True)
        columns[:, 0] = 0
        sums.append(cumulative.gather(-1, columns).diff(dim=-1).sum(0, dtype=torch.float64))
        counts.append((edges.diff(dim=-1) * active.unsqueeze(-1)).sum(0).double())
    return torch.cat(sums), torch.cat(counts)


def _bin_edges(ordinal: Tensor, bins: int) -> Tensor:
    """Ordinals at which ``bins`` equal parts of each row end, (batch, bins + 1) long, from 0 to T."""
    length = ordinal[:, -1:].long() if ordinal.shape[-1] else ordinal.new_zeros((ordinal.shape[0], 1)).long()
    return length * torch.arange(bins + 1, device=ordinal.device) // bins


def _finite(x: float) -> bool:
    return x - x == 0.0


def _name_the_nonfinite(tokens: Tokens, loss: float) -> str:
    lines = []
    for name in ("log_prob", "old_log_prob", "advantages"):
        values = getattr(tokens, name)
        bad = tokens.mask & (values.isnan() | (values == torch.inf) | ((values == -torch.inf) & (name == "advantages")))
        if bool(bad.any()):
            rows = bad.any(-1).nonzero().flatten().tolist()
            lines.append(f"{name}: {int(bad.sum())} tokens in rows {rows[:8]}{'...' if len(rows) > 8 else ''}")
    cause = "; ".join(lines) or f"the inputs are finite, the loss is {loss}"
    return f"non-finite values in the policy loss of this micro-batch: {cause}. The optimizer step was not taken."
