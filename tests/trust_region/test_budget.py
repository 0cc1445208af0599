"""Masked quantiles and the prefix budgets made of them."""

import numpy as np
import pytest
import torch

from cppo_verl.trust_region.budget import masked_quantile, prefix_budget
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.tokens import Tokens
from tests.helpers import random_mask


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_quantile_against_numpy(q: float, dtype: torch.dtype, rtol: float):
    """With ties, and of rows without a valid token."""
    rng = np.random.default_rng(int(q * 10))
    for width in [1, 2, 3, 10, 11, 21, 100]:
        mask = random_mask(rng, 40, width).astype(bool)
        values = rng.exponential(1.0, mask.shape)
        values = torch.from_numpy(np.where(values < 0.5, values.round(1), values) * mask).to(dtype)
        got = masked_quantile(values, torch.from_numpy(mask.sum(-1, keepdims=True)), q)
        assert got.shape == (40, 1)
        for row in range(40):
            valid = values[row, mask[row]].double().numpy()
            assert got[row].item() == pytest.approx(np.quantile(valid, q) if valid.size else 0.0, rel=rtol)


def test_budget_by_hand():
    """q = .5 of two values is their mean: .01, .03, .50, the last row is empty; the floor is .02 and the cap .04."""
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [0, 0]])
    divergence = torch.tensor([[0.0, 0.02], [0.02, 0.04], [0.4, 0.6], [0.0, 0.0]])
    tokens = Tokens.of(divergence, divergence, divergence, mask)
    for scale, floor, expected in (
        (1.0, 0.02, [0.02, 0.03, 0.04, 0.02]),
        (0.9, 0.02, [0.02, 0.027, 0.04, 0.02]),
        (1, 0, [0] * 4),
    ):
        knobs = TrustRegionKnobs(delta_b=floor, budget_quantile=0.5, budget_scale=scale, budget_cap=2.0)
        assert prefix_budget(tokens, divergence, knobs)[:, 0].tolist() == pytest.approx(expected)
