"""Prefix budgets delta_b of a response (Eq. 22 of arXiv 2606.10968)."""

import numpy as np
import torch
from torch import Tensor

BY_NUMPY = ("cpu",)  # devices where numpy finds order statistics in a tenth of topk's time


def masked_quantile(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """Quantile of each row over its valid tokens, linear interpolation, any batch size and length.

    The q-quantile of T values lies at rank q (T - 1) of their ascending order, counted from 0. ``topk`` of the share of
    a row that it can lie in costs a fraction of a sort, and torch.quantile refuses more than 16M elements.

    Args:
        values: (batch, length) float32 or float64, 0 or more, and 0 at invalid positions.
        mask: (batch, length) bool.
        q: in [0, 1].

    Returns:
        (batch, 1); 0 for rows without a valid token.
    """
    width, from_top = values.shape[-1], q >= 0.5
    if width == 0:
        return values.new_zeros(values.shape[0], 1)
    last = (mask.sum(-1, keepdim=True, dtype=torch.float64) - 1).clamp_min(0)  # T - 1
    rank = q * last
    places = torch.cat([rank.floor(), rank.ceil()], -1)
    if values.device.type in BY_NUMPY:
        low, high = _on_the_cpu(values, (width - 1 - last + places).long()).split(1, dim=-1)
        return torch.lerp(low, high, rank.frac().to(values.dtype))
    if from_top:
        ordered = values.topk(min(width, int(width * (1 - q)) + 3)).values
        places = last - places
    else:
        ordered = values.masked_fill(~mask, torch.inf).topk(min(width, int(width * q) + 3), largest=False).values
    low, high = ordered.gather(-1, places.long()).split(1, dim=-1)
    between = torch.lerp(low, high, rank.frac().to(values.dtype))
    return between if from_top else between.nan_to_num(nan=0.0)  # of a row that is nothing but infinities


def _on_the_cpu(values: Tensor, places: Tensor) -> Tensor:
    """What stands at two neighbouring places of each row's ascending order, (batch, 2)."""
    found = np.empty(places.shape, values.numpy().dtype)
    for row, (low, high) in enumerate(places.tolist()):
        ordered = np.partition(values[row].numpy(), low)
        found[row] = ordered[low], ordered[low + 1 :].min() if high > low else ordered[low]
    return torch.from_numpy(found)


def quantile_budget(divergence: Tensor, mask: Tensor, floor: float, q: float, scale: float, cap: float) -> Tensor:
    """delta_b of each response: clamp(scale * Quantile_q(D_1..T), floor, cap * floor) (Eq. 22).

    Args:
        divergence: (batch, length), finite, 0 or more, and 0 at invalid positions.
        mask: (batch, length) bool.

    Returns:
        (batch, 1); an empty response gets the floor.
    """
    return (scale * masked_quantile(divergence, mask, q)).clamp(floor, cap * floor)
