"""Position weights w_t over the valid tokens of a response (Eq. 9 of arXiv 2606.10968).

``mask`` is (batch, length) bool; weights are (batch, length) of ``dtype``, 0 at invalid positions.
"""

import torch
from torch import Tensor

from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.tokens import Tokens


def position_weights(tokens: Tokens, knobs: TrustRegionKnobs) -> Tensor:
    """w_t of Eq. 9 or its ablations, as the knobs say."""
    dtype = tokens.log_prob.dtype
    if knobs.weights == "constant":
        return tokens.mask.to(dtype)
    if knobs.horizon == "max":
        weights = linear_weights_max(tokens.mask, knobs.w_min, knobs.max_response_length, dtype)
    else:
        weights = linear_weights(tokens.mask, knobs.w_min, dtype, tokens.ordinal)
    if knobs.weights == "shuffled":
        weights = shuffle_weights(weights, tokens.mask, tokens.old_log_prob, knobs.shuffle_seed)
    return weights


def linear_weights(
    mask: Tensor, w_min: float, dtype: torch.dtype = torch.float32, ordinal: Tensor | None = None
) -> Tensor:
    """w_t = 1 - (1 - w_min)(t - 1)/(T - 1) with T the row's own number of valid tokens; w_1 = 1 when T = 1 (Eq. 9).

    ``ordinal`` is t where that is at hand (``Tokens.ordinal``).
    """
    before = (mask.cumsum(-1, dtype=dtype) if ordinal is None else ordinal) - 1  # t - 1
    share = before.div_(before[:, -1:].clamp_min(1))
    return share.mul_(w_min - 1).add_(1).mul_(mask)


def linear_weights_max(
    mask: Tensor, w_min: float, max_length: int | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Eq. 9 with T the maximum response length and t the column, as the authors' verl version does.

    ``max_length`` None takes the tensor's width; columns beyond it keep w_min.
    """
    width = mask.shape[-1]
    share = torch.arange(width, device=mask.device, dtype=dtype) / max((max_length or width) - 1, 1)
    return torch.where(mask, 1 - (1 - w_min) * share.clamp_max(1), 0.0)


def shuffle_weights(weights: Tensor, mask: Tensor, fingerprint: Tensor, seed: int) -> Tensor:
    """Permute each row's weights among its valid tokens (ablation "Shuffled Weights").

    The permutation depends on ``seed`` and on what identifies a response, ``fingerprint`` (batch, length) (its rollout
    log-probs): the same in every update on a batch, whatever the micro-batch or the padding.
    """
    ordinal = mask.cumsum(-1)
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
