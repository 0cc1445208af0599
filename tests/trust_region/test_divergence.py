"""Token divergences against high-precision arithmetic and by hand."""

import math

import mpmath
import pytest
import torch

from cppo_verl.trust_region.divergence import BINARY, binary_kl, binary_tv
from tests.reference import kl_to_60_digits


def one(function, q: float, p: float, dtype: torch.dtype = torch.float64) -> float:
    """D of probabilities q = pi(y) and p = mu(y)."""
    return function(torch.tensor([q], dtype=dtype).log(), torch.tensor([p], dtype=dtype).log()).item()


def test_by_hand():
    assert one(binary_tv, 0.50, 0.25) == one(binary_tv, 0.25, 0.50) == pytest.approx(0.25, rel=1e-15)
    # p = 1/2, q = 1/4: 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3)
    assert one(binary_kl, 0.25, 0.5) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)
    # p = 1/4, q = 1/2: 1/4 log(1/2) + 3/4 log(3/2); not the same: KL(mu || pi), in this order
    assert one(binary_kl, 0.5, 0.25) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-14)


def near(log_prob: float) -> list[float]:
    """Values a relative 1e-6 .. 0.1 away from ``log_prob``."""
    return [log_prob * (1 + s) for s in (1e-6, -1e-6, 1e-4, -1e-4, 0.01, -0.01, 0.03, -0.03, 0.1, -0.1)]


# Log-probs of probabilities down to e^-60 and up to 1 - 1e-7.
GRID = [-60.0, -30.0, -14.0, -7.0, *(math.log(p) for p in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99))]
GRID += [-(10.0**-k) for k in range(3, 8)]


# Half a unit in the last place of the result, and what is left of the two cancelling terms of a KL near 0: less than
# 2e-16 nats, where verl's 1e-8 inside the logarithm leaves 1e-8 and more.
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-14), (torch.float32, 6e-8)])
def test_kl_error_on_a_grid(dtype: torch.dtype, relative: float):
    pairs = [(q, p) for p in GRID for q in GRID + near(p)] + [(q, p) for q in GRID for p in near(q)]
    log_q, log_p = torch.tensor(pairs, dtype=dtype).unbind(1)
    got = binary_kl(log_q, log_p)
    assert got.dtype == dtype
    for q, p, value in zip(*(x.double().tolist() for x in (log_q, log_p, got)), strict=True):
        exact = kl_to_60_digits(q, p)
        assert value >= 0
        assert abs(mpmath.mpf(value) - exact) <= relative * exact + 2e-16, (q, p, value, float(exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_certain_and_impossible_tokens(kind: str, dtype: torch.dtype):
    corners = [-math.inf, -1e4, -90.0, -1.0, -0.0, 0.0]
    log_q, log_p = torch.cartesian_prod(*[torch.tensor(corners, dtype=dtype)] * 2).unbind(1)
    divergence = BINARY[kind](log_q, log_p)
    assert torch.isfinite(divergence).all()
    assert (divergence >= 0).all()
    assert (divergence[log_q == log_p] == 0).all()
    assert BINARY[kind](log_p.new_tensor([0.0]), log_p.new_tensor([-math.inf])).item() >= 1  # 0 against 1
    assert BINARY[kind](log_p.new_tensor([-math.inf]), log_p.new_tensor([0.0])).item() >= 1
