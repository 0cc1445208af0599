"""Position weights: Eq. 9 by hand (by loop: test_rules), both horizons, and the shuffle."""

import numpy as np
import pytest
import torch

from cppo_verl.trust_region import schedule
from tests.helpers import random_mask


def test_by_hand():
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0], [0] * 8], dtype=torch.bool)
    # w_min = 0.6, T = 5: steps of 0.1 over valid tokens; a single token has weight 1
    own = schedule.linear_weights(mask, 0.6)
    assert own[0].tolist() == pytest.approx([0, 1, 0.9, 0, 0.8, 0.7, 0.6, 0])
    assert own[1:].tolist() == [[0, 0, 0, 1, 0, 0, 0, 0], [0] * 8]
    # T = 5, t the column from 1; beyond T the last weight stays. On a bare tensor T is its width
    column = schedule.linear_weights_max(mask, 0.6, 5)
    assert column[0].tolist() == pytest.approx([0, 0.9, 0.8, 0, 0.6, 0.6, 0.6, 0])
    assert schedule.linear_weights_max(torch.ones(1, 3).bool(), 0.6, None)[0].tolist() == pytest.approx([1, 0.8, 0.6])
    assert schedule.linear_weights_max(torch.tensor([[True], [False]]), 0.5, 1).tolist() == [[1], [0]]


def shuffled(mask: torch.Tensor, log_probs: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return schedule.shuffle_weights(schedule.linear_weights(mask, 0.5, torch.float64), mask, log_probs, seed)


def test_a_shuffle_is_a_permutation_by_seed_and_response_alone():
    rng = np.random.default_rng(3)
    mask = torch.from_numpy(random_mask(rng, 60, 15)).bool()
    log_probs = torch.from_numpy(-rng.exponential(1.0, (60, 15)))
    plain, mixed = schedule.linear_weights(mask, 0.5, torch.float64), shuffled(mask, log_probs)
    for row in range(len(mask)):
        assert sorted(mixed[row, mask[row]].tolist()) == sorted(plain[row, mask[row]].tolist())
    assert (mixed[~mask] == 0).all() and not torch.equal(mixed, plain)
    assert not torch.equal(mixed, shuffled(mask, log_probs, seed=1))
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(0))[:7]
    assert torch.equal(shuffled(mask[order], log_probs[order]), mixed[order])
    # what stands at invalid positions, and padding, are not seen
    assert torch.equal(shuffled(mask, torch.where(mask, log_probs, torch.nan)), mixed)
    wide = torch.nn.functional.pad(mask, (3, 4)), torch.nn.functional.pad(log_probs, (3, 4), value=-7.0)
    assert torch.equal(shuffled(*wide)[:, 3:-4], mixed)
