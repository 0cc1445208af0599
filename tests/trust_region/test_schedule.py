"""Position weights: Eq. 9 by hand and by loop, both horizons, and the shuffle."""

from collections import Counter

import numpy as np
import pytest
import torch

from cppo_verl.trust_region import schedule
from tests import reference
from tests.helpers import random_mask


def masks(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def linear(mask: torch.Tensor, w_min: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return schedule.linear_weights(mask, w_min, dtype)


def test_positions_count_valid_tokens_only():
    mask = masks([0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1])
    positions = schedule.valid_positions(mask)
    assert positions[mask].tolist() == [1, 2, 3, 1, 2]


def test_linear_by_hand():
    # w_min = 0.6, T = 5: steps of 0.1
    assert linear(masks([1, 1, 1, 1, 1]), 0.6)[0].tolist() == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
    # the same with a hole and padding: only valid tokens count
    assert linear(masks([0, 1, 1, 0, 1, 1, 1, 0]), 0.6)[0].tolist() == pytest.approx([0, 1, 0.9, 0, 0.8, 0.7, 0.6, 0])


def test_a_single_token_has_weight_one_and_an_empty_response_none():
    weights = linear(masks([0, 0, 1], [0, 0, 0]), 0.5)
    assert weights.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert schedule.linear_weights_max(masks([1], [0]), 0.5, 1).tolist() == [[1], [0]]


def test_horizon_max_by_hand():
    mask = masks([1, 1, 0], [0, 1, 1])
    # T = 5, t the column from 1: 1, 0.9, 0.8
    got = schedule.linear_weights_max(mask, 0.6, 5, torch.float64)
    assert got.tolist() == [pytest.approx([1, 0.9, 0]), pytest.approx([0, 0.9, 0.8])]
    # on a bare tensor the horizon is its width
    got = schedule.linear_weights_max(mask, 0.6, None, torch.float64)
    assert got.tolist() == [pytest.approx([1, 0.8, 0]), pytest.approx([0, 0.8, 0.6])]


@pytest.mark.parametrize("max_length", [None, 7, 12, 40])
def test_both_horizons_against_loops(max_length: int | None):
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(random_mask(rng, 200, 12)).bool()
    own = linear(mask, 0.55).tolist()
    absolute = schedule.linear_weights_max(mask, 0.55, max_length, torch.float64).tolist()
    for row, valid in enumerate(mask.tolist()):
        assert own[row] == pytest.approx(reference.linear_weights(valid, 0.55), abs=1e-15)
        assert absolute[row] == pytest.approx(reference.linear_weights_by_column(valid, 0.55, max_length), abs=1e-15)


# ---- shuffled


def shuffled(mask: torch.Tensor, log_probs: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return schedule.shuffle_weights(linear(mask, 0.5), mask, log_probs, seed)


def some_rows(rows: int = 60, width: int = 15, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(random_mask(rng, rows, width)).bool()
    return mask, torch.from_numpy(-rng.exponential(1.0, (rows, width)))


def test_shuffle_keeps_the_multiset_of_each_response():
    mask, log_probs = some_rows()
    plain, mixed = linear(mask, 0.5), shuffled(mask, log_probs)
    for row in range(len(mask)):
        assert sorted(mixed[row, mask[row]].tolist()) == sorted(plain[row, mask[row]].tolist())
    assert (mixed[~mask] == 0).all()
    assert not torch.equal(mixed, plain)


def test_shuffle_is_a_function_of_seed_and_response():
    mask, log_probs = some_rows()
    whole = shuffled(mask, log_probs)
    assert torch.equal(whole, shuffled(mask, log_probs))
    assert not torch.equal(whole, shuffled(mask, log_probs, seed=1))
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(0))
    assert torch.equal(shuffled(mask[order], log_probs[order]), whole[order])
    assert torch.equal(torch.cat([shuffled(mask[:7], log_probs[:7]), shuffled(mask[7:], log_probs[7:])]), whole)


def test_shuffle_does_not_see_padding():
    mask, log_probs = some_rows()
    whole = shuffled(mask, log_probs)
    garbage = torch.where(mask, log_probs, torch.nan)
    assert torch.equal(shuffled(mask, garbage), whole)
    left = torch.nn.functional.pad(log_probs, (3, 4), value=-7.0), torch.nn.functional.pad(mask, (3, 4))
    assert torch.equal(shuffled(left[1], left[0])[:, 3:-4], whole)


def test_every_permutation_is_about_as_likely():
    rows = 6000
    mask = torch.ones(rows, 3, dtype=torch.bool)
    log_probs = -torch.rand(rows, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    seen = Counter(map(tuple, shuffled(mask, log_probs).tolist()))
    assert len(seen) == 6
    chi_square = sum((n - rows / 6) ** 2 / (rows / 6) for n in seen.values())
    assert chi_square < 20.5  # 5 degrees of freedom, one in a thousand
