"""Group-relative advantages (GRPO), with groups of zero reward variance marked (``mask_std_0``).

A group is the set of responses to one prompt. A group whose rewards are all equal carries no preference: its
advantages are exactly 0, and the trainer skips it before the actor's forward. A group of one is such a group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-6  # added to the standard deviation, as in verl's GRPO


class GroupAdvantage(NamedTuple):
    """Per response, (batch,): the advantage (float32), and whether its group has zero variance."""

    advantage: Tensor
    zero_variance: Tensor


def group_relative(rewards: Tensor, groups: Sequence[object], normalise_by_std: bool = True) -> GroupAdvantage:
    """Reward minus its group's mean, divided by the group's (unbiased) standard deviation if asked.

    Args:
        rewards: (batch,) floating, the reward of each response.
        groups: a hashable label of each response's group (verl's prompt uid).
        normalise_by_std: False leaves out the division (Dr.GRPO, arXiv 2503.20783).

    Raises:
        ValueError: a reward is not finite; names the rows.
    """
    finite = torch.isfinite(rewards)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"{len(rows)} rewards are not finite (rows {rows[:8]}); check the reward function")

    labels: dict[object, int] = {}
    member = torch.tensor([labels.setdefault(g, len(labels)) for g in groups], device=rewards.device, dtype=torch.long)
    zeros = torch.zeros(len(labels), dtype=torch.float64, device=rewards.device)

    def of_group(values: Tensor, how: str) -> Tensor:
        """``how`` a response's group takes its values together, (batch,)."""
        return zeros.scatter_reduce(0, member, values, how, include_self=False)[member]

    values = rewards.double()
    size = of_group(torch.ones_like(values), "sum")
    zero_variance = of_group(values, "amin") == of_group(values, "amax")
    advantage = values - of_group(values, "sum") / size
    if normalise_by_std:
        variance = of_group(advantage.square(), "sum") / (size - 1).clamp_min(1)
        advantage = advantage / (variance.sqrt() + EPSILON)
    return GroupAdvantage(advantage.masked_fill(zero_variance, 0.0).float(), zero_variance)
