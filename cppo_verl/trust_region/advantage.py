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
    """Per response, (batch,): the advantage (float32), whether its group has zero variance, and the group's size."""

    advantage: Tensor
    zero_variance: Tensor
    group_size: Tensor


def group_relative(rewards: Tensor, groups: Sequence[object], normalise_by_std: bool = True) -> GroupAdvantage:
    """Reward minus its group's mean, divided by the group's (unbiased) standard deviation if asked.

    Args:
        rewards: (batch,) floating, the reward of each response.
        groups: length-batch sequence of hashable group labels (verl's prompt uid).
        normalise_by_std: False leaves out the division (Dr.GRPO, arXiv 2503.20783).

    Raises:
        ValueError: when the lengths differ, or a reward is not finite (names the rows).
    """
    if rewards.dim() != 1 or len(groups) != rewards.shape[0]:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)} but there are {len(groups)} group labels")
    finite = torch.isfinite(rewards)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"{len(rows)} rewards are not finite (rows {rows[:8]}); check the reward function")

    values = rewards.double()
    labels: dict[object, int] = {}
    member = torch.tensor([labels.setdefault(g, len(labels)) for g in groups], device=rewards.device, dtype=torch.long)
    zeros = values.new_zeros(len(labels))
    size = zeros.index_add(0, member, torch.ones_like(values))
    mean = zeros.index_add(0, member, values) / size
    lowest = zeros.scatter_reduce(0, member, values, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, member, values, "amax", include_self=False)
    zero_variance = (lowest == highest)[member]

    advantage = values - mean[member]
    if normalise_by_std:
        variance = zeros.index_add(0, member, advantage.square()) / (size - 1).clamp_min(1)
        advantage = advantage / (variance.sqrt()[member] + EPSILON)
    advantage = advantage.masked_fill(zero_variance, 0.0)
    return GroupAdvantage(advantage.float(), zero_variance, size[member].long())
