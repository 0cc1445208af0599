"""Prefix budgets delta_b (Eq. 8 and 22 of arXiv 2606.10968)."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def masked_quantile(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """Quantile of each row over its valid tokens, linear interpolation, any batch size and length.

    Args:
        values: (batch, length) float32 or float64, 0 or more; what stands at invalid positions does not matter.
        mask: (batch, length) bool.
        q: in [0, 1].

    Returns:
        (batch, 1); rows without a valid token give NaN.
    """
    count = mask.sum(-1)
    result = _quantile(values.masked_fill(~mask, 0.0 if _from_top(q) else torch.inf), count, q)
    return torch.where(count.unsqueeze(-1) > 0, result, torch.nan)


def quantile_budget(
    divergence: Tensor, mask: Tensor, floor: float, q: float, scale: float, cap: float, count: Tensor | None = None
) -> Tensor:
    """delta_b of each response: clamp(scale * Quantile_q(D_1..T), floor, cap * floor) (Eq. 22).

    Args:
        divergence: (batch, length), finite, 0 at invalid positions.
        mask: (batch, length) bool.
        count: (batch,) int64 valid tokens of each row, where it is at hand.

    Returns:
        (batch, 1); an empty response gets the floor.
    """
    if _from_top(q):
        quantile = _quantile(divergence, mask.sum(-1) if count is None else count, q)
    else:
        quantile = masked_quantile(divergence, mask, q).nan_to_num(nan=0.0)
    return (quantile if scale == 1 else scale * quantile).clamp(floor, cap * floor)


def fixed_budget(divergence: Tensor, delta_b: float) -> Tensor:
    """The same delta_b for every response, (batch, 1)."""
    return divergence.new_full((divergence.shape[0], 1), delta_b)


def _from_top(q: float) -> bool:
    """The order statistics wanted lie in the upper (1 - q) share of a row, or else in the lower q share."""
    return q >= 0.5


def _quantile(values: Tensor, count: Tensor, q: float) -> Tensor:
    """(batch, 1) from values that are 0 (``_from_top``) or infinite at invalid positions; arbitrary if none is valid.

    Non-negative floats order like their bits, -0.0 below 0.0, and integers sort faster.
    """
    width = values.shape[-1]
    if width == 0:
        return values.new_zeros(values.shape[0], 1)
    top = _from_top(q)
    kept = min(width, int(width * (1 - q if top else q)) + 3)
    bits = _extremes(values.view(_INTEGERS[values.dtype]), kept, top)
    places, fraction = _places(1 << (width - 1).bit_length(), q, values.dtype, values.device)
    low, high = bits.view(values.dtype).gather(-1, places[count]).split(1, dim=-1)
    return torch.lerp(low, high, fraction[count])


def _extremes(bits: Tensor, kept: int, largest: bool) -> Tensor:
    """The ``kept`` extreme values of each row, sorted from the extreme inwards."""
    if bits.device.type != "cpu":
        return bits.topk(kept, dim=-1, largest=largest, sorted=True).values
    # numpy selects with vector instructions: a twentieth of topk's time, which was a fifth of the whole loss
    border = bits.shape[-1] - kept if largest else kept - 1
    parted = np.partition(bits.numpy(), border, axis=-1)
    chosen = np.sort(parted[:, border:] if largest else parted[:, :kept], axis=-1)
    return torch.from_numpy(chosen[:, ::-1].copy() if largest else chosen)


@lru_cache(maxsize=64)
def _places(capacity: int, q: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in a sorted row of n values its quantile lies, for n = 0..capacity: made once instead of a dozen launches.

    Returns:
        Positions of the two order statistics, (capacity + 1, 2) int64, from the top or the bottom (``_from_top``), and
        the step from the first to the second, (capacity + 1, 1).
    """
    last = (torch.arange(capacity + 1, dtype=torch.float64) - 1).clamp_min(0)
    rank = last * q
    below = rank.floor()
    places = torch.stack([below, (below + 1).minimum(last)], -1)
    if _from_top(q):
        places = last.unsqueeze(-1) - places
    return places.long().to(device), (rank - below).to(dtype).unsqueeze(-1).to(device)
