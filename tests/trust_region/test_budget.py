"""Masked quantiles and the prefix budgets made of them."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cppo_verl.trust_region import budget
from tests.helpers import random_mask

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def test_quantile_by_hand():
    values = torch.tensor([[4.0, 0.0, 1.0, 2.0, 3.0]])
    mask = torch.tensor([[True, False, True, True, True]])
    # sorted 1 2 3 4; rank 0.9 * 3 = 2.7 -> 3.7
    assert budget.masked_quantile(values, mask, 0.9).tolist() == [[pytest.approx(3.7)]]
    assert budget.masked_quantile(values, mask, 0.5).tolist() == [[pytest.approx(2.5)]]


@pytest.mark.parametrize("q", QUANTILES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-15)])
def test_quantile_against_numpy(q: float, dtype: torch.dtype, rtol: float):
    rng = np.random.default_rng(int(q * 10))
    for width in [1, 2, 3, 4, 5, 9, 10, 11, 12, 20, 21, 31, 64, 100, 101, 257]:
        mask = random_mask(rng, 40, width).astype(bool)
        values = torch.from_numpy(rng.exponential(1.0, mask.shape) * mask).to(dtype)
        got = budget.masked_quantile(values, torch.from_numpy(mask), q)
        assert got.shape == (40, 1)
        for row in range(40):
            if not mask[row].any():
                assert got[row] == 0
                continue
            expected = np.quantile(values[row, mask[row]].double().numpy(), q, method="linear")
            assert got[row].item() == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("q", QUANTILES)
def test_an_accelerator_finds_the_same_bits(q: float, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    mask = torch.from_numpy(random_mask(rng, 60, 41)).bool()
    values = torch.from_numpy(rng.exponential(1.0, mask.shape).astype(np.float32)) * mask
    here = budget.masked_quantile(values, mask, q)
    monkeypatch.setattr(budget, "BY_NUMPY", ())
    assert torch.equal(budget.masked_quantile(values, mask, q), here)


@pytest.mark.parametrize("q", QUANTILES)
def test_quantile_with_ties(q: float):
    values = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, True, True, False, False]])
    assert budget.masked_quantile(values, mask, q).item() == pytest.approx(np.quantile([0, 0, 0.5, 0, 0.5], q))


def test_quantile_budget_by_hand():
    mask = torch.ones(4, 2, dtype=torch.bool)
    mask[3] = False
    # q = 0.5 of two values is their mean: 0.01, 0.03, 0.50; the last row is empty
    values = torch.tensor([[0.0, 0.02], [0.02, 0.04], [0.4, 0.6], [0.0, 0.0]])
    got = budget.quantile_budget(values, mask, floor=0.02, q=0.5, scale=1.0, cap=2.0)
    assert got[:, 0].tolist() == pytest.approx([0.02, 0.03, 0.04, 0.02])
    got = budget.quantile_budget(values, mask, floor=0.02, q=0.5, scale=0.9, cap=2.0)
    assert got[:, 0].tolist() == pytest.approx([0.02, 0.027, 0.04, 0.02])


def test_a_budget_of_zero_stays_zero():
    values = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 5, dtype=torch.bool)
    assert (budget.quantile_budget(values, mask, 0.0, 0.9, 1.0, 2.0) == 0).all()


LARGE = """
import resource, torch
from cppo_verl.trust_region.budget import masked_quantile
torch.set_num_threads(1)
rows, width = 2048, 8500
values = torch.arange(width, dtype=torch.float32).repeat(rows, 1)
mask = torch.ones(rows, width, dtype=torch.bool)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
got = masked_quantile(values, mask, 0.9)
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
