"""One check for each statement of the theory: given the formula to judge, it raises AssertionError when that is off.

A bound that is merely too loose never fails an inequality. So every constant is also pinned from the other side: by
models that attain it (exactly at T = 2, up to O(T * divergence) in general, see ``deviating_pair``).
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from cppo_verl.trust_region import bound, schedule
from tests.theory import enumerable as model
from tests.theory.enumerable import Pair

XI = 1.5
ROUNDING = 1e-9
HORIZONS = (2, 3, 4, 5)
SMALL = 1e-3  # divergences of the models that nearly attain a bound
DELTA, DELTA_B = 0.15, 0.02


@lru_cache
def random_pairs() -> tuple[Pair, ...]:
    """Pairs of every horizon, near and far policies, peaked and flat ones."""
    shapes = [(horizon, spread) for horizon in HORIZONS for spread in (1.0, 3.0)]
    return tuple(model.random_pair(i, 32, 3, horizon, spread) for i, (horizon, spread) in enumerate(shapes))


def gap_sums(pair: Pair) -> Tensor:
    """sum_t (rho_t - 1)(1 - rho_{t+1:T}) of every sequence, term by term; (batch, V**T)."""
    total = torch.zeros_like(pair.law)
    for t in range(pair.horizon):
        total += (pair.ratio[..., t] - 1) * (1 - pair.ratio[..., t + 1 :].prod(-1))
    return total


def largest_gap(pair: Pair) -> Tensor:
    """max |Delta| over all rewards |R| <= XI, attained by R = XI sign(gap); (batch,)."""
    return XI * (pair.law * gap_sums(pair).abs()).sum(-1)


def one_step_improvement(pair: Pair, reward: Tensor) -> Tensor:
    """L' as sum_t of J(mu, but pi at step t) - J(mu): its definition without ratios; (batch,)."""
    total = torch.zeros(pair.law.shape[0], dtype=torch.float64)
    for t in range(pair.horizon):
        swapped = (*pair.mu[:t], pair.pi[t], *pair.mu[t + 1 :])
        total += ((model.law(swapped) - pair.law) * reward).sum(-1)
    return total


def rewards(pair: Pair) -> Iterator[Tensor]:
    """A random reward table and the worst one."""
    yield model.random_reward(pair, XI, seed=1)
    yield XI * gap_sums(pair).sign()


def linear_weights(horizon: int, w_min: float) -> Tensor:
    return schedule.linear_weights(torch.ones((1, horizon), dtype=torch.bool), w_min, torch.float64)[0]


@lru_cache
def monotone_schedules(horizon: int) -> tuple[Tensor, ...]:
    """Schedules that meet Theorem 1's hypothesis, (T - t)/w_t non-increasing; the linear one does (Proposition 5)."""
    later = torch.arange(horizon - 1, -1, -1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(horizon)
    influence = torch.rand(horizon, generator=generator, dtype=torch.float64).add(0.2).sort(descending=True).values
    arbitrary = torch.where(later > 0, later / influence / horizon, 0.7)
    increasing = torch.linspace(0.5, 1.5, horizon, dtype=torch.float64)
    schedules = linear_weights(horizon, 1.0), linear_weights(horizon, 0.3), increasing, arbitrary
    for weights in schedules:
        assert bool(((later / weights)[: horizon - 1].diff() <= ROUNDING).all())
    return schedules


def close(actual: object, expected: object, tolerance: float = ROUNDING) -> None:
    """Relative equality of two numbers or float64 tensors, shapes included."""
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=1e-300)


def below(lower: Tensor, upper: object) -> float:
    """Assert lower <= upper up to rounding, and hand back the tightest ratio."""
    ratio = torch.as_tensor(lower / upper, dtype=torch.float64)
    assert bool((ratio <= 1 + ROUNDING).all()), f"bound violated: {float(ratio.max())}"
    return float(ratio.max())


def attained(lower: Tensor, upper: object, shortfall: float) -> None:
    """Assert that the bound holds, and that it exceeds what is bounded by at most the given share."""
    ratio = below(lower, upper)
    assert ratio >= 1 - shortfall - ROUNDING, f"the bound is loose: {ratio} of it is attained, expected {1 - shortfall}"


def check_lemma2_surrogate(terms: Callable) -> None:
    for pair in random_pairs():
        for reward in rewards(pair):
            error = (pair.law * reward * terms(pair.ratio)).sum(-1) - one_step_improvement(pair, reward)
            assert float(error.abs().max()) <= 1e-12


def check_lemma2_gap(terms: Callable) -> None:
    for pair in random_pairs():
        gap = pair.law * terms(pair.ratio)
        for reward in rewards(pair):
            delta = (gap * reward).sum(-1)
            error = pair.improvement(reward) - (one_step_improvement(pair, reward) - delta)
            assert float(error.abs().max()) <= 1e-12
            # Delta does not see a constant added to the reward
            assert float((delta - (gap * (reward + 7.0)).sum(-1)).abs().max()) <= 1e-12


def check_prop4(limit_of: Callable) -> None:
    tightest = dict.fromkeys(HORIZONS, 0.0)
    for pair in random_pairs():
        limit = limit_of(pair.mean_divergence, pair.largest_divergence, XI)
        tightest[pair.horizon] = max(tightest[pair.horizon], below(largest_gap(pair), limit))
    assert tightest[2] > 0.9 and tightest[3] > 0.5 and min(tightest.values()) > 0.1
    two = random_pairs()[0]
    two = model.set_divergence(two, 1, float(two.divergence[1].amin()))
    close(largest_gap(two), limit_of(two.mean_divergence, two.largest_divergence, XI))  # equality at T = 2
    for horizon in HORIZONS:
        off_path = [SMALL * (1 - 0.1 * t) for t in range(horizon)]
        pair = model.deviating_pair([0.3 * off_path[t] * (1 + t % 2) for t in range(horizon)], off_path)
        limit = limit_of(pair.mean_divergence, torch.tensor([off_path], dtype=torch.float64), XI)
        attained(largest_gap(pair), limit, horizon * SMALL)


def check_theorem1(residual_of: Callable) -> None:
    tightest = dict.fromkeys(HORIZONS, 0.0)
    for pair in random_pairs():
        for weights in monotone_schedules(pair.horizon):
            tightest[pair.horizon] = max(tightest[pair.horizon], _theorem1_on_random(residual_of, pair, weights))
    assert tightest[2] > 0.9 and tightest[3] > 0.4 and min(tightest.values()) > 0.1
    for horizon in HORIZONS:
        for weights in monotone_schedules(horizon):
            _theorem1_attained(residual_of, horizon, weights)


def _theorem1_on_random(residual_of: Callable, pair: Pair, weights: Tensor) -> float:
    horizon = pair.horizon
    thresholds = DELTA * torch.linspace(1.0, 0.7, horizon, dtype=torch.float64)
    pair = model.project_in_expectation(pair, weights, thresholds, DELTA_B)
    below(weights * pair.largest_divergence, thresholds)
    below((weights * pair.mean_divergence).cumsum(-1)[:, :-1], DELTA_B * weights.cumsum(-1)[:-1])
    residual = residual_of(horizon, (thresholds / weights).amax(-1), DELTA_B, XI)
    for reward in rewards(pair):
        assert bool((pair.improvement(reward) >= one_step_improvement(pair, reward) - residual - 1e-12).all())
    return below(largest_gap(pair), residual)


def _theorem1_attained(residual_of: Callable, horizon: int, weights: Tensor) -> None:
    """|Delta| and the constant agree."""
    delta_b = 0.2 * SMALL
    pair = model.saturating_pair([delta_b] * (horizon - 1), SMALL)
    close((weights * pair.mean_divergence).cumsum(-1)[0, :-1], delta_b * weights.cumsum(-1)[:-1], tolerance=1e-6)
    residual = residual_of(horizon, SMALL, delta_b, XI)
    attained(largest_gap(pair), residual, horizon * SMALL)


CHECKS: dict[Callable, Callable[[Callable], None]] = {
    bound.surrogate_terms: check_lemma2_surrogate,
    bound.gap_terms: check_lemma2_gap,
    bound.gap_bound: check_prop4,
    bound.residual_constant: check_theorem1,
}
