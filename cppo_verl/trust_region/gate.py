"""What a rule decides of each token, and what a gate makes of a token that breaks a constraint."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class PrefixState(NamedTuple):
    """Where the prefix budget stands, for the logger. Each (batch,): S_T, W_T and delta_b of a response."""

    spent: Tensor
    weight: Tensor
    delta_b: Tensor


class Thresholds(NamedTuple):
    """What Theorem 1 needs to know of a rule: lbar, the bound on D_t of a token, and delta_b, a number or (batch,)."""

    token_bound: float
    delta_b: float | Tensor


@dataclass(frozen=True)
class Verdict:
    """What a rule decided. Tensors are (batch, length).

    Attributes:
        gate: bool (kept or not), or floating: in [0, 1] for a soft gate, below 0 where an update is turned round, at
            least -1; arbitrary at invalid positions.
        over_token: bool, the token alone breaks its threshold (whether masked or not).
        prefix: the prefix budget's state, None for rules without one.
        weight: importance weight to use instead of min(rho, ratio_cap); None for that default.
        capped: bool, tokens whose weight was cut; None to compare rho with ``ratio_cap``.
        thresholds: for the bound on the gap; None for a rule that bounds no D_t.
    """

    gate: Tensor
    over_token: Tensor
    prefix: PrefixState | None = None
    weight: Tensor | None = None
    capped: Tensor | None = None
    thresholds: Thresholds | None = None


def restore(keep: Tensor, strength: float) -> Tensor:
    """The gate of ``gate=restore``: 1 where kept and -strength elsewhere, float32.

    An update that moves pi further from mu than its constraint allows is turned round: it moves pi back toward mu, at
    most as fast as a kept one of the same ratio and advantage moves it away. The gate is ours; the pull is that of BPO
    (arXiv 2604.18578), whose loss has the same slope on either side of its target.
    """
    return torch.where(keep, 1.0, -strength)


def attenuate(excess: Tensor, kind: str) -> Tensor:
    """g(x) of the soft gate: 1 up to x = 1, then non-increasing with x g(x) <= 1 (Appendix C).

    ``inverse`` is 1/x. ``sapo`` is shaped like SAPO's sigmoid gate (arXiv 2511.20347): 1/x times 4 s (1 - s) with
    s = sigmoid(x - 1); the factor 1/x keeps it admissible.
    """
    beyond = excess.clamp_min(1.0)
    if kind == "inverse":
        return 1 / beyond
    s = torch.sigmoid(beyond - 1)
    return 4 * s * (1 - s) / beyond
