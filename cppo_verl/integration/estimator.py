"""The group-relative advantage estimator in verl's registry, as ``algorithm.adv_estimator=group_relative``."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cppo_verl.integration import skip
from cppo_verl.trust_region.advantage import group_relative

NORMALISED = "norm_adv_by_std_in_grpo"  # of verl's ``algorithm`` config: whether to divide by the deviation


def compute_group_relative_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config=None, **_: object
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (batch, length), equal at every valid token of a response.

    Args:
        token_level_rewards: (batch, length) floating; a response's reward is their sum.
        response_mask: (batch, length). index: (batch,) prompt uid of each response. config: verl's ``algorithm``.

    Raises:
        ValueError: when a reward is not finite (names the rows).
    """
    with torch.no_grad():
        groups = group_relative(token_level_rewards.sum(-1), list(index), (config or {}).get(NORMALISED, True))
        advantages = groups.advantage.unsqueeze(-1) * response_mask
    return advantages, advantages


def session_advantages(keys: Sequence[str], rewards: Tensor, config=None) -> Tensor | None:
    """Advantages, (batch,), of a batch in which sessions have several outputs; None where none has.

    verl hands an estimator rows, not sessions, and an output is no member of the group: the reward of a session's last
    output counts once, for all of them, as with verl's own ``grpo``. ``keys`` are verl's, ``rewards`` (batch,).
    """
    last = skip.last_outputs(keys)
    members = sorted(set(last))
    if len(members) == len(keys):
        return None
    uids = [skip.split(keys[row])[0] for row in members]
    advantages = torch.zeros(len(keys))
    advantages[members] = group_relative(rewards[members], uids, (config or {}).get(NORMALISED, True)).advantage
    return advantages[last]
