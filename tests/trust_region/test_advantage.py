"""Group-relative advantages: by hand, against verl's GRPO, and groups without variance."""

import math

import numpy as np
import pytest
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

from cppo_verl.trust_region.advantage import group_relative


def test_by_hand():
    """Group a: 1 0 0 1, mean 1/2, deviation sqrt(1/3); group b: 3 1, mean 2, deviation sqrt 2."""
    rewards, groups = torch.tensor([1.0, 3.0, 0.0, 0.0, 1.0, 1.0]), ["a", "b", "a", "a", "b", "a"]
    got = group_relative(rewards, groups, normalise_by_std=False)
    assert got.advantage.tolist() == [0.5, 1, -0.5, -0.5, -1, 0.5]
    assert not got.zero_variance.any()
    a, b = 0.5 / math.sqrt(1 / 3), 1 / math.sqrt(2)
    got = group_relative(rewards, groups)
    assert got.advantage.tolist() == pytest.approx([a, b, -a, -a, -b, a], rel=1e-5)


def test_zero_variance_is_exactly_zero_and_marked():
    """0.1 three times: its float32 mean is not 0.1, so a plain difference would leave a residue of 1e-9 over 1e-6."""
    rewards = torch.tensor([0.1, 1.0, 0.1, 0.0, 0.1])
    for normalise in (True, False):
        got = group_relative(rewards, ["x", "y", "x", "y", "x"], normalise)
        assert got.zero_variance.tolist() == [True, False, True, False, True]
        assert got.advantage[got.zero_variance].tolist() == [0, 0, 0]
        assert (got.advantage[~got.zero_variance] != 0).all()


def random_rollout(seed: int, groups: int = 10, samples: int = 8, width: int = 6):
    """Token-level rewards on the last valid token, mask, uids interleaved at random."""
    rng = np.random.default_rng(seed)
    uid = np.array([f"prompt-{i}" for i in range(groups)] * samples, dtype=object)
    rng.shuffle(uid)
    rows = groups * samples
    lengths = rng.integers(1, width + 1, rows)
    mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
    rewards = torch.zeros(rows, width)
    scores = rng.choice([0.0, 1.0], rows) if seed % 2 else rng.normal(size=rows)
    rewards[torch.arange(rows), torch.from_numpy(lengths - 1)] = torch.from_numpy(scores).float()
    return rewards, mask, uid


@pytest.mark.parametrize("normalise", [True, False])
def test_the_estimator_is_verls_grpo_where_groups_vary(normalise: bool):
    config = AlgoConfig(norm_adv_by_std_in_grpo=normalise)
    estimate = get_adv_estimator_fn("group_relative")
    varied = 0
    for seed in range(4):
        rewards, mask, uid = random_rollout(seed)
        got, returns = estimate(token_level_rewards=rewards, response_mask=mask, index=uid, config=config)
        theirs, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, uid, norm_adv_by_std_in_grpo=normalise)
        scores = rewards.sum(-1)
        for g in set(uid):
            rows = torch.from_numpy(uid == g)
            if scores[rows].unique().numel() > 1:
                varied += 1
                torch.testing.assert_close(got[rows], theirs[rows], rtol=2e-5, atol=2e-6)
            else:
                assert (got[rows] == 0).all()
        assert torch.equal(got, returns)
        assert got.shape == rewards.shape
        assert (got[mask == 0] == 0).all()
    assert varied > 30


def test_a_reward_that_is_not_finite_is_refused():
    rewards = torch.zeros(20)
    rewards[3], rewards[11] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"2 rewards are not finite \(rows \[3, 11\]\)"):
        group_relative(rewards, [0] * 20)
