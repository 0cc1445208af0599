"""What a rule decides of each token, and how a soft gate attenuates what breaks a constraint."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrefixState:
    """Where the prefix budget stands, for the logger. Each (batch,): S_T, W_T and delta_b of a response."""

    spent: Tensor
    weight: Tensor
    delta_b: Tensor


@dataclass(frozen=True)
class Thresholds:
    """What Theorem 1 needs to know of a rule: lbar, the bound on D_t of a token, and delta_b, a number or (batch,)."""

    token_bound: float
    delta_b: float | Tensor


@dataclass(frozen=True)
class Verdict:
    """What a rule decided. Tensors are (batch, length) unless said.

    Attributes:
        gate: bool (kept or not), or floating in [0, 1] for a soft gate; arbitrary at invalid positions.
        over_token: bool, the token alone breaks its threshold (whether masked or not).
        prefix: the prefix budget's state, None for rules without one.
        weight: importance weight to use instead of min(rho, ratio_cap); None for that default.
        capped: bool, tokens whose weight was cut; None to compare rho with ``ratio_cap``.
        thresholds: for the bound certificate; None for a rule that bounds no D_t.
    """

    gate: Tensor
    over_token: Tensor
    prefix: PrefixState | None = None
    weight: Tensor | None = None
    capped: Tensor | None = None
    thresholds: Thresholds | None = None


def attenuate(excess: Tensor, kind: str) -> Tensor:
    """g(x) of the soft gate: 1 up to x = 1, then non-increasing with x g(x) <= 1 (Appendix C).

    ``inverse`` is 1/x. ``sapo`` is shaped like SAPO's sigmoid gate (arXiv 2511.20347): 1/x times
    4 s (1 - s) with s = sigmoid(x - 1); the factor 1/x keeps it admissible.
    """
    beyond = excess.clamp_min(1.0)
    if kind == "inverse":
        return beyond.reciprocal_()
    s = torch.sigmoid(beyond - 1)
    return (4 * s * (1 - s)).div_(beyond)
