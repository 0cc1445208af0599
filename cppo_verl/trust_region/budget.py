"""Prefix budgets delta_b of a response (Eq. 22 of arXiv 2606.10968)."""

import numpy as np
import torch
from torch import Tensor

from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.tokens import Tokens


def prefix_budget(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Tensor:
    """delta_b of each response, (batch, 1): as given, or clamp(scale Quantile_q(D_1..T), floor, cap floor) (Eq. 22).

    An empty response gets the floor. ``divergence`` (batch, length) is finite, 0 or more, and 0 at invalid positions.
    """
    if knobs.budget == "fixed":
        return divergence.new_full((divergence.shape[0], 1), knobs.delta_b)
    quantile = masked_quantile(divergence, tokens.ordinal[:, -1:], knobs.budget_quantile)
    return (knobs.budget_scale * quantile).clamp(knobs.delta_b, knobs.budget_cap * knobs.delta_b)


def masked_quantile(values: Tensor, length: Tensor, q: float) -> Tensor:
    """The q-quantile of each row's ``length`` valid tokens, linear interpolation, any batch size and width.

    That of T values lies at rank q (T - 1) of their ascending order, counted from 0. To sort the share of a row that it
    can lie in costs a fraction of a whole sort, and torch.quantile refuses more than 16M elements.

    Args:
        values: (batch, width) float32 or float64, 0 or more, and 0 at invalid positions. length: (batch, 1).

    Returns:
        (batch, 1); 0 for rows without a valid token.
    """
    width = values.shape[-1]
    if width == 0:
        return values.new_zeros(values.shape[0], 1)
    last = (length.double() - 1).clamp_min(0)  # T - 1
    rank = q * last
    places = last - torch.cat([rank.floor(), rank.ceil()], -1)  # from the top, so that the zeros come last
    ordered = _largest(values, min(width, int(width * (1 - q)) + 3))
    low, high = ordered.gather(-1, places.long()).split(1, -1)
    return torch.lerp(low, high, rank.frac().to(values.dtype))


def _largest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each row, in descending order; on the CPU numpy finds them in half of topk's time."""
    if values.device.type != "cpu":
        return values.topk(count).values
    width = values.shape[-1]
    return torch.from_numpy(np.sort(np.partition(values.numpy(), width - count)[:, width - count :])).flip(-1)
