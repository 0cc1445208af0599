"""Position weights w_t over the valid tokens of a response (Eq. 9 of arXiv 2606.10968).

``mask`` is (batch, length) bool, true at valid response tokens; it may have holes (tool output) and padding on either
side. Weights are (batch, length) of ``dtype``, 0 at invalid positions.
"""

import torch
from torch import Tensor


def valid_positions(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ordinal 1..T of each valid token among the valid tokens of its row, (batch, length); 0 before the first one.

    Invalid positions carry the ordinal of the last valid token before them.
    """
    return mask.cumsum(-1, dtype=dtype)


def linear_weights(
    mask: Tensor, w_min: float, dtype: torch.dtype = torch.float32, ordinal: Tensor | None = None
) -> Tensor:
    """w_t = 1 - (1 - w_min)(t - 1)/(T - 1) with T the row's own number of valid tokens; w_1 = 1 when T = 1 (Eq. 9).

    Args:
        w_min: weight of the last valid token, in (0, 1].
        ordinal: ``valid_positions(mask, dtype)`` where it is at hand.
    """
    before = (valid_positions(mask, dtype) if ordinal is None else ordinal) - 1  # t - 1
    return (1 - (1 - w_min) * (before / before[:, -1:].clamp_min(1))) * mask


def linear_weights_max(
    mask: Tensor, w_min: float, max_length: int | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Eq. 9 with T the maximum response length and t the column, as the authors' verl version does.

    Args:
        max_length: configured maximum response length in tokens; None takes the tensor's width. Columns beyond it
            keep w_min.
    """
    length = mask.shape[-1]
    column = torch.arange(length, device=mask.device, dtype=dtype)
    steps = max((max_length or length) - 1, 1)
    return (1 - (1 - w_min) * (column / steps).clamp_max(1)) * mask


def constant_weights(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """w_t = 1 at valid tokens (ablation "w/o Position Weight")."""
    return mask.to(dtype)


def shuffle_weights(weights: Tensor, mask: Tensor, fingerprint: Tensor, seed: int) -> Tensor:
    """Permute each row's weights among its valid tokens (ablation "Shuffled Weights").

    The permutation depends on ``seed`` and the response alone, so that it stays the same in every update on a batch,
    whatever the micro-batch or the padding.

    Args:
        weights: (batch, length), 0 at invalid positions.
        fingerprint: (batch, length) floating values that identify the response, e.g. its rollout log-probs.
        seed: any whole number.
    """
    ordinal = mask.long().cumsum(-1)
    tokens = fingerprint.double().masked_fill(~mask, 0).nan_to_num().mul(2.0**40).long()
    row_key = (_mix(tokens + ordinal) * mask).sum(-1, keepdim=True)
    draw = _mix(_mix(row_key + seed) + ordinal)
    order = draw.masked_fill(~mask, torch.iinfo(torch.int64).max).argsort(dim=-1, stable=True)  # valid, at random
    valid_columns = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)  # valid columns first, in their own order
    return torch.zeros_like(weights).scatter(-1, order, weights.gather(-1, valid_columns)) * mask


def _mix(x: Tensor) -> Tensor:
    """A 64-bit integer hash (xor-shift and odd multipliers; wraps around), elementwise and the same on every device."""
    x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) * 0x7FB5D329728EA185
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x7E2A4A3D62B4E3D5
    return x ^ ((x >> 33) & 0x7FFFFFFF)
