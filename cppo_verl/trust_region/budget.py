"""Prefix budgets delta_b (Eq. 8 and 22 of arXiv 2606.10968)."""

import torch
from torch import Tensor

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def masked_quantile(values: Tensor, mask: Tensor, q: float, count: Tensor | None = None) -> Tensor:
    """Quantile of each row over its valid tokens, linear interpolation, any batch size and length.

    Args:
        values: (batch, length) float32 or float64, 0 or more; what stands at invalid positions does not matter.
        mask: (batch, length) bool.
        q: in [0, 1].
        count: (batch,) int64 valid tokens of each row, where it is at hand.

    Returns:
        (batch, 1); rows without a valid token give NaN.
    """
    if values.shape[-1] == 0:
        return values.new_full((values.shape[0], 1), torch.nan)
    count = (mask.sum(-1) if count is None else count).unsqueeze(-1)
    rank = (count - 1).clamp_min(0).to(torch.float64) * q
    below = rank.floor()
    width = values.shape[-1]
    # The order statistics wanted lie in the upper (1 - q) share of the row, or in the lower q share.
    from_top = q >= 0.5
    kept = min(width, int(width * (1 - q if from_top else q)) + 2)
    fill = -torch.inf if from_top else torch.inf
    # Non-negative floats order like their bits, and integers sort faster; + 0.0 makes -0.0 positive.
    bits = torch.where(mask, values, fill).add_(0.0).view(_INTEGERS[values.dtype])
    extremes = bits.topk(kept, dim=-1, largest=from_top, sorted=True).values.view(values.dtype)
    position = below.long()
    upper = (position + 1).minimum((count - 1).clamp_min(0))
    if from_top:
        position, upper = count - 1 - position, count - 1 - upper
    low = extremes.gather(-1, position.clamp(0, kept - 1))
    high = extremes.gather(-1, upper.clamp(0, kept - 1))
    result = torch.lerp(low, high, (rank - below).to(values.dtype))
    return torch.where(count > 0, result, torch.nan)


def quantile_budget(
    divergence: Tensor, mask: Tensor, floor: float, q: float, scale: float, cap: float, count: Tensor | None = None
) -> Tensor:
    """delta_b of each response: clamp(scale * Quantile_q(D_1..T), floor, cap * floor) (Eq. 22).

    Args:
        divergence: (batch, length), finite at valid tokens.
        mask: (batch, length) bool.

    Returns:
        (batch, 1); an empty response gets the floor.
    """
    quantile = masked_quantile(divergence, mask, q, count).nan_to_num(nan=0.0)
    return (scale * quantile).clamp(floor, cap * floor)


def fixed_budget(divergence: Tensor, delta_b: float) -> Tensor:
    """The same delta_b for every response, (batch, 1)."""
    return divergence.new_full((divergence.shape[0], 1), delta_b)
