"""The group-relative advantage estimator in verl's registry, as ``algorithm.adv_estimator=group_relative``."""

from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from cppo_verl.trust_region.advantage import GroupAdvantage, group_relative

NAME = "group_relative"

# While set, the estimator leaves its per-response findings here for the trainer.
findings: ContextVar[list[GroupAdvantage] | None] = ContextVar("group_advantages", default=None)


def register(core_algos) -> None:
    """Put the estimator into verl's registry."""
    core_algos.register_adv_est(NAME)(compute_group_relative_advantage)


def compute_group_relative_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config=None, **_: object
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (batch, length), equal at every valid token of a response.

    Args:
        token_level_rewards: (batch, length) floating; a response's reward is their sum.
        response_mask: (batch, length).
        index: (batch,) prompt uid of each response.
        config: verl's ``algorithm`` config; ``norm_adv_by_std_in_grpo`` decides on the division by the deviation.

    Raises:
        ValueError: when a reward is not finite (names the rows).
    """
    normalise = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    with torch.no_grad():
        groups = group_relative(token_level_rewards.sum(-1), list(index), normalise)
        advantages = groups.advantage.unsqueeze(-1) * response_mask
    found = findings.get()
    if found is not None:
        found.append(groups)
    return advantages, advantages
