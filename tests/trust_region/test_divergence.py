"""Token divergences against high-precision arithmetic and by hand."""

import math

import mpmath
import pytest
import torch

from cppo_verl.trust_region.divergence import BINARY, binary_kl, binary_tv, full_kl, full_tv
from tests.reference import kl_to_60_digits


def one(function, q: float, p: float, dtype: torch.dtype = torch.float64) -> float:
    """D of probabilities q = pi(y) and p = mu(y)."""
    return function(torch.tensor([q], dtype=dtype).log(), torch.tensor([p], dtype=dtype).log()).item()


def test_tv_by_hand():
    assert one(binary_tv, 0.50, 0.25) == pytest.approx(0.25, rel=1e-15)
    assert one(binary_tv, 0.25, 0.50) == pytest.approx(0.25, rel=1e-15)


def test_kl_by_hand():
    # p = 1/2, q = 1/4: 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3)
    assert one(binary_kl, 0.25, 0.5) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)
    # p = 1/4, q = 1/2: 1/4 log(1/2) + 3/4 log(3/2); not the same: KL(mu || pi), in this order
    assert one(binary_kl, 0.5, 0.25) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-14)


def log_prob_grid() -> list[float]:
    """Log-probs of probabilities down to e^-60 and up to 1 - 1e-7, as float32 can hold them."""
    low = [-60.0, -30.0, -14.0, -7.0]
    middle = [math.log(p) for p in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
    high = [-(10.0**-k) for k in range(3, 8)]
    return torch.tensor(low + middle + high, dtype=torch.float32).double().tolist()


def near(log_prob: float, dtype: torch.dtype) -> list[float]:
    """Values a relative 1e-6 .. 0.1 away from ``log_prob``, representable in ``dtype``."""
    steps = (1e-6, -1e-6, 1e-4, -1e-4, 0.01, -0.01, 0.03, -0.03, 0.1, -0.1)
    return torch.tensor([log_prob * (1 + s) for s in steps], dtype=dtype).double().tolist()


# Half a unit in the last place of the result, and what is left of the two cancelling terms of a KL near 0: less than
# 2e-16 nats, where verl's 1e-8 inside the logarithm leaves 1e-8 and more.
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-14), (torch.float32, 6e-8)])
def test_kl_error_on_a_grid(dtype: torch.dtype, relative: float):
    grid = log_prob_grid()
    pairs = [(q, p) for p in grid for q in grid if p != q]
    pairs += [(q, p) for p in grid for q in near(p, dtype) if p != q]
    pairs += [(q, p) for q in grid for p in near(q, dtype) if p != q]
    log_q, log_p = torch.tensor(pairs, dtype=dtype).unbind(1)
    got = binary_kl(log_q, log_p)
    assert got.dtype == dtype
    for (q, p), value in zip(pairs, got.double().tolist(), strict=True):
        exact = kl_to_60_digits(q, p)
        assert value >= 0
        assert abs(mpmath.mpf(value) - exact) <= relative * exact + 2e-16, (q, p, value, float(exact))


# Half a unit in the last place of the result, and what is left of the two cancelling terms of a KL near 0: less than
# 2e-16 nats, where verl's 1e-8 inside the logarithm leaves 1e-8 and more.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_relatively_exact_where_it_matters(dtype: torch.dtype):
    """From a billionth of a nat on, a relative 1e-6; thresholds in use are 0.1 and 0.002."""
    generator = torch.Generator().manual_seed(3)
    log_p = -torch.rand(4000, generator=generator, dtype=dtype).pow(6).mul(20)
    log_q = (log_p * torch.rand(4000, generator=generator, dtype=dtype).mul(0.02).add(0.99)).clamp_max(-1e-12)
    large = 0
    for q, p, value in zip(log_q.tolist(), log_p.tolist(), binary_kl(log_q, log_p).tolist(), strict=True):
        exact = kl_to_60_digits(q, p) if p < 0 else mpmath.mpf(0)
        if exact > 1e-9:
            large += 1
            assert abs(value - exact) <= 1e-6 * exact
    assert large > 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_never_negative_and_zero_at_equality(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    log_p = -torch.rand(200_000, generator=generator, dtype=dtype).pow(4).mul(12)
    log_q = log_p + torch.randn(log_p.shape, generator=generator, dtype=dtype).mul(1e-6)
    assert (binary_kl(log_q.clamp_max(0), log_p) >= 0).all()
    assert (binary_kl(log_p, log_p) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
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


def test_tv_range_and_dtype():
    generator = torch.Generator().manual_seed(1)
    log_q, log_p = -torch.rand(2, 10_000, generator=generator).mul(20)
    value = binary_tv(log_q, log_p)
    assert value.dtype == torch.float32
    assert (value >= 0).all()
    assert (value <= 1).all()
    assert binary_tv(log_q.bfloat16(), log_p.bfloat16()).dtype == torch.float32
    assert torch.equal(value, binary_tv(log_p, log_q))


def test_full_vocabulary_by_hand():
    log_mu = torch.tensor([[0.5, 0.25, 0.25]]).double().log()
    log_pi = torch.tensor([[0.25, 0.25, 0.5]]).double().log()
    assert full_tv(log_pi, log_mu).tolist() == pytest.approx([0.25])
    # 1/2 log 2 + 1/4 log 1 + 1/4 log 1/2 = 1/4 log 2
    assert full_kl(log_pi, log_mu).tolist() == pytest.approx([0.25 * math.log(2)])


def test_binary_is_a_lower_bound_of_the_full_vocabulary():
    generator = torch.Generator().manual_seed(2)
    logits_mu, logits_pi = torch.randn(2, 500, 7, generator=generator, dtype=torch.float64).mul(2)
    log_mu, log_pi = logits_mu.log_softmax(-1), logits_pi.log_softmax(-1)
    for token in range(7):
        assert (binary_tv(log_pi[:, token], log_mu[:, token]) <= full_tv(log_pi, log_mu) + 1e-15).all()
        assert (binary_kl(log_pi[:, token], log_mu[:, token]) <= full_kl(log_pi, log_mu) + 1e-15).all()
