"""Masked quantiles and the prefix budgets made of them."""

import subprocess
import sys

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
    for width in [1, 2, 3, 4, 5, 9, 10, 11, 12, 20, 21, 31, 64, 100, 101, 257]:
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


LARGE = """
import resource, torch
from cppo_verl.trust_region.budget import masked_quantile
torch.set_num_threads(1)
rows, width = 2048, 8500
values = torch.arange(width, dtype=torch.float32).repeat(rows, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
got = masked_quantile(values, torch.full((rows, 1), width), 0.9)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
exact = 0.9 * (width - 1)
assert got.shape == (rows, 1)
assert ((got - exact).abs() <= 1e-6 * exact).all(), got
assert values.numel() > 2**24
print((after - before) / 1024)
"""


def test_more_elements_than_torch_quantile_takes():
    """16.8M elements is where torch.quantile gives up; a process of its own, so that its peak memory is its own."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1024, f"{done.stdout} MiB"
