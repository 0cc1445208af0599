"""One check for each statement of the theory: given the formulas to judge, it raises AssertionError when one is off.

A bound that is merely too loose never fails an inequality. So every constant is also pinned from the other side: by
models that attain it (exactly at T = 2, up to O(T * divergence) in general, see ``deviating_pair``), or by the maximum
of sum_t lambda_t u_t over the constraint polytope, found by looking at its vertices.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from cppo_verl.trust_region import bound, schedule
from tests.theory import enumerable as model
from tests.theory.enumerable import Pair
from tests.theory.linear_program import maximum, prefix_rows

XI = 1.5
ROUNDING = 1e-9
HORIZONS = (2, 3, 4, 5, 6)
SMALL = 1e-3  # divergences of the models that nearly attain a bound
DELTA, DELTA_B = 0.15, 0.02


@dataclass(frozen=True)
class Formulas:
    """Every formula under test; a mutant replaces one."""

    surrogate_terms: Callable = bound.surrogate_terms
    gap_terms: Callable = bound.gap_terms
    suffix_tv_bound: Callable = bound.suffix_tv_bound
    suffix_tv_sum: Callable = bound.suffix_tv_sum
    gap_bound: Callable = bound.gap_bound
    per_token_bound: Callable = bound.per_token_bound
    lambda_weights: Callable = bound.lambda_weights
    residual_constant: Callable = bound.residual_constant
    implemented_residual: Callable = bound.implemented_residual
    uniform_residual: Callable = bound.uniform_residual
    prefix_ratio: Callable = bound.prefix_ratio
    implemented_ratio: Callable = bound.implemented_ratio
    influence_per_budget: Callable = bound.influence_per_budget
    linear_influence_drop: Callable = bound.linear_influence_drop
    slack_term: Callable = bound.slack_term
    terminal_only_ratio: Callable = bound.terminal_only_ratio


@lru_cache
def random_pairs() -> tuple[Pair, ...]:
    """Pairs of every horizon, vocabulary 3 and 4, near and far policies, peaked and flat ones."""
    pairs = []
    for horizon in HORIZONS:
        for vocabulary, spread in ((3, 1.0), (3, 3.0), (4, 1.0)):
            batch = 64 if vocabulary**horizon < 1000 else 8
            pairs.append(model.random_pair(100 * horizon + len(pairs), batch, vocabulary, horizon, spread))
    return tuple(pairs)


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
    """Two random reward tables and the two worst ones."""
    yield model.random_reward(pair, XI, seed=1)
    yield model.random_reward(pair, XI, seed=2).sign() * XI
    worst = XI * gap_sums(pair).sign()
    yield from (worst, -worst)


def linear_weights(horizon: int, w_min: float) -> Tensor:
    return schedule.linear_weights(torch.ones((1, horizon), dtype=torch.bool), w_min, torch.float64)[0]


@lru_cache
def monotone_schedules(horizon: int) -> tuple[Tensor, ...]:
    """Schedules that meet Theorem 1's hypothesis: (T - t)/w_t non-increasing over t < T."""
    later = torch.arange(horizon - 1, -1, -1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(horizon)
    influence = torch.rand(horizon, generator=generator, dtype=torch.float64).add(0.2).sort(descending=True).values
    arbitrary = torch.where(later > 0, later / influence / horizon, 0.7)
    increasing = torch.linspace(0.5, 1.5, horizon, dtype=torch.float64)
    ones = torch.ones(horizon, dtype=torch.float64)
    schedules = (ones, linear_weights(horizon, 0.8), linear_weights(horizon, 0.3), increasing, arbitrary)
    for weights in schedules:
        assert bool(((later / weights)[: horizon - 1].diff() <= ROUNDING).all())
    return schedules


def close(actual: object, expected: object, tolerance: float = ROUNDING) -> None:
    """Relative equality of two numbers or float64 tensors, shapes included."""
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    wrong = (actual - expected).abs() > tolerance * expected.abs().clamp_min(1e-300)
    assert not bool(wrong.any()), f"{actual} != {expected}"
    assert bool(torch.isfinite(actual).all())


def below(lower: Tensor, upper: object, rounding: float = ROUNDING) -> float:
    """Assert lower <= upper up to rounding, and hand back the tightest ratio."""
    ratio = torch.as_tensor(lower / upper, dtype=torch.float64)
    assert bool((ratio <= 1 + rounding).all()), f"bound violated: {float(ratio.max())}"
    return float(ratio.max())


def attained(lower: Tensor, upper: object, shortfall: float) -> float:
    """Assert that the bound holds, and that it exceeds what is bounded by at most the given share."""
    ratio = below(lower, upper)
    assert ratio >= 1 - shortfall - ROUNDING, f"the bound is loose: {ratio} of it is attained, expected {1 - shortfall}"
    return ratio


def check_lemma2(f: Formulas) -> dict[str, float]:
    error = 0.0
    for pair in random_pairs():
        surrogate, gap = f.surrogate_terms(pair.ratio), f.gap_terms(pair.ratio)
        for reward in rewards(pair):
            first_order = (pair.law * reward * surrogate).sum(-1)
            delta = (pair.law * reward * gap).sum(-1)
            shifted = (pair.law * (reward + 7.0) * gap).sum(-1)
            errors = (
                pair.improvement(reward) - (first_order - delta),
                first_order - one_step_improvement(pair, reward),
                delta - shifted,  # Delta does not see a constant added to the reward
            )
            error = max(error, *(float(e.abs().max()) for e in errors))
            assert error <= 1e-12, f"Lemma 2 is off by {error}"
    return {"largest error": error}


def check_lemma3(f: Formulas) -> dict[str, float]:
    tightest = 0.0
    for pair in random_pairs():
        product, total = f.suffix_tv_bound(pair.largest_divergence), f.suffix_tv_sum(pair.largest_divergence)
        assert not bool(product[:, -1].any()) and not bool(total[:, -1].any())  # nothing follows the last token
        for t in range(1, pair.horizon):
            ratio = below(pair.suffix_tv(t).amax(-1), product[:, t - 1])
            tightest = tightest if t == pair.horizon - 1 else max(tightest, ratio)
        below(product[:, :-1], total[:, :-1])
    assert tightest > 0.85  # over suffixes of at least two tokens
    for horizon in HORIZONS:
        levels = torch.linspace(0.35, 0.1, horizon, dtype=torch.float64)
        product = model.deviating_pair(levels.tolist(), levels.tolist(), rare=0.0)
        tiny = model.deviating_pair((1e-7 * levels).tolist(), (1e-7 * levels).tolist(), rare=0.0)
        for t in range(1, horizon):
            close(product.suffix_tv(t).amax(), f.suffix_tv_bound(levels)[t - 1])
            close(tiny.suffix_tv(t).amax(), f.suffix_tv_sum(1e-7 * levels)[t - 1], tolerance=1e-6)
    return {"tightest random suffix of two tokens or more": tightest}


def check_prop4(f: Formulas) -> dict[str, float]:
    tightest: dict[str, float] = {}
    for pair in random_pairs():
        limit = f.gap_bound(pair.mean_divergence, pair.largest_divergence, XI)
        ratio = below(largest_gap(pair), limit)
        for reward in rewards(pair):
            below(((pair.law * gap_sums(pair)) * reward).sum(-1).abs(), limit)
        name = f"random, T={pair.horizon}"
        tightest[name] = max(tightest.get(name, 0.0), ratio)
    assert tightest["random, T=2"] > 0.9 and tightest["random, T=3"] > 0.5 and min(tightest.values()) > 0.1
    two = random_pairs()[0]
    two = model.set_divergence(two, 1, float(two.divergence[1].amin()))
    close(largest_gap(two), f.gap_bound(two.mean_divergence, two.largest_divergence, XI))  # equality at T = 2
    for horizon in HORIZONS:
        off_path = [SMALL * (1 - 0.1 * t) for t in range(horizon)]
        pair = model.deviating_pair([0.3 * off_path[t] * (1 + t % 2) for t in range(horizon)], off_path)
        limit = f.gap_bound(pair.mean_divergence, torch.tensor([off_path], dtype=torch.float64), XI)
        tightest[f"constructed, T={horizon}"] = attained(largest_gap(pair), limit, horizon * SMALL)
    return tightest


def check_theorem1(f: Formulas) -> dict[str, float]:
    tightest: dict[str, float] = {}
    for pair in random_pairs():
        for weights in monotone_schedules(pair.horizon):
            ratio = _theorem1_on_random(f, pair, weights)
            name = f"random, T={pair.horizon}"
            tightest[name] = max(tightest.get(name, 0.0), ratio)
    assert tightest["random, T=2"] > 0.9 and tightest["random, T=3"] > 0.4 and min(tightest.values()) > 0.1
    for horizon in HORIZONS:
        for weights in monotone_schedules(horizon):
            ratio = _theorem1_attained(f, horizon, weights)
        tightest[f"constructed, T={horizon}"] = ratio
    return tightest


def _theorem1_on_random(f: Formulas, pair: Pair, weights: Tensor) -> float:
    horizon = pair.horizon
    thresholds = DELTA * torch.linspace(1.0, 0.7, horizon, dtype=torch.float64)
    pair = model.project_in_expectation(pair, weights, thresholds, DELTA_B)
    below(weights * pair.largest_divergence, thresholds)
    prefix = (weights * pair.mean_divergence).cumsum(-1)[:, :-1]
    below(prefix, DELTA_B * weights.cumsum(-1)[:-1])

    token_bound = f.per_token_bound(thresholds, weights)
    residual = f.residual_constant(horizon, token_bound, DELTA_B, XI)
    weighted = (f.lambda_weights(horizon, token_bound, XI) * pair.mean_divergence).sum(-1)
    below(pair.largest_divergence, token_bound)
    below(largest_gap(pair), weighted)
    below(weighted, residual)
    for reward in rewards(pair):
        assert bool((pair.improvement(reward) >= one_step_improvement(pair, reward) - residual - 1e-12).all())
    return below(largest_gap(pair), residual)


def _theorem1_attained(f: Formulas, horizon: int, weights: Tensor) -> float:
    """|Delta|, the vertex maximum and the constant agree; lbar is the largest divergence the thresholds allow."""
    delta_b = 0.2 * SMALL
    pair = model.saturating_pair([delta_b] * (horizon - 1), SMALL)
    close((weights * pair.mean_divergence).cumsum(-1)[0, :-1], delta_b * weights.cumsum(-1)[:-1], tolerance=1e-6)
    token_bound = f.per_token_bound(SMALL * weights, weights)
    close(token_bound, pair.largest_divergence.amax())
    residual = f.residual_constant(horizon, token_bound, delta_b, XI)

    coefficients = f.lambda_weights(horizon, token_bound, XI)
    assert coefficients.shape == (horizon,)
    below((coefficients * pair.mean_divergence).sum(-1), residual)
    limits = delta_b * weights.cumsum(-1)[:-1]
    close(maximum(coefficients[:-1], prefix_rows(weights[:-1]), limits), residual)

    uneven = DELTA * torch.linspace(0.5, 1.0, horizon, dtype=torch.float64).flip(-1)
    levels = (uneven / weights).tolist()
    close(f.per_token_bound(uneven, weights), model.deviating_pair(levels, levels).largest_divergence.amax())
    return attained(largest_gap(pair), residual, horizon * SMALL)


def check_prop5(f: Formulas) -> dict[str, float]:
    smallest = 1.0
    for w_min in (0.05, 0.3, 0.8, 1.0):
        for horizon in (2, 3, 7, 500):
            exact = [1 - (1 - Fraction(w_min)) * Fraction(t, horizon - 1) for t in range(horizon)]
            influence = [Fraction(horizon - 1 - t) / w for t, w in enumerate(exact)]
            drops = [float(a - b) for a, b in zip(influence, influence[1:], strict=False)]
            weights = linear_weights(horizon, w_min)
            close(f.influence_per_budget(weights), torch.tensor([float(g) for g in influence], dtype=torch.float64))
            close(f.linear_influence_drop(weights, w_min), torch.tensor(drops, dtype=torch.float64))
            assert min(drops) > 0
            smallest = min(smallest, *drops)
    return {"smallest drop": smallest}


def _uniform_maximum(horizon: int, delta: float) -> float:
    """max of 4 xi delta sum_t (T - t) u_t when all that is known is u_t <= delta."""
    coefficients = 4 * XI * delta * torch.arange(horizon - 1, 0, -1, dtype=torch.float64)
    limits = torch.full((horizon - 1,), delta, dtype=torch.float64)
    return maximum(coefficients, torch.eye(horizon - 1, dtype=torch.float64), limits)


def _prefix_maximum(weights: Tensor, token_bound: float, delta_b: float) -> float:
    """max of 4 xi lbar sum_t (T - t) u_t when P_m <= delta_b W_m for every m < T."""
    horizon = weights.numel()
    coefficients = 4 * XI * token_bound * torch.arange(horizon - 1, 0, -1, dtype=torch.float64)
    return maximum(coefficients, prefix_rows(weights[:-1]), delta_b * weights.cumsum(-1)[:-1])


def check_corollary6(f: Formulas) -> dict[str, float]:
    tightest = 0.0
    for pair in random_pairs():
        for t in range(pair.horizon):
            pair = model.cap_divergence(pair, t, torch.tensor(DELTA, dtype=torch.float64))
        tightest = max(tightest, below(largest_gap(pair), f.uniform_residual(pair.horizon, DELTA, XI)))
    assert tightest > 0.9
    for horizon in HORIZONS:
        ones = torch.ones(horizon, dtype=torch.float64)
        uniform = _uniform_maximum(horizon, DELTA)
        close(f.uniform_residual(horizon, DELTA, XI), uniform)
        close(f.prefix_ratio(DELTA, DELTA_B), _prefix_maximum(ones, DELTA, DELTA_B) / uniform)

        delta_b = 0.2 * SMALL
        by_threshold = largest_gap(model.deviating_pair([SMALL] * horizon, [SMALL] * horizon))
        by_prefix = largest_gap(model.saturating_pair([delta_b] * (horizon - 1), SMALL))
        attained(by_threshold, f.uniform_residual(horizon, SMALL, XI), horizon * SMALL)
        close(f.prefix_ratio(SMALL, delta_b), (by_prefix / by_threshold)[0], tolerance=horizon * SMALL)
    return {"uniform rule, random": tightest}


def check_corollary7(f: Formulas) -> dict[str, float]:
    tightest = 0.0
    for w_min in (0.5, 0.8, 1.0):
        for pair in random_pairs():
            weights = linear_weights(pair.horizon, w_min)
            pair = model.project_in_expectation(pair, weights, torch.full_like(weights, DELTA), DELTA_B)
            residual = f.implemented_residual(pair.horizon, DELTA, DELTA_B, w_min, XI)
            tightest = max(tightest, below(largest_gap(pair), residual))
        for horizon in HORIZONS:
            worst = _prefix_maximum(linear_weights(horizon, w_min), DELTA / w_min, DELTA_B)
            close(f.implemented_residual(horizon, DELTA, DELTA_B, w_min, XI), worst)
            close(f.implemented_ratio(DELTA, DELTA_B, w_min), worst / _uniform_maximum(horizon, DELTA))
        last = DELTA / w_min
        two = model.deviating_pair([DELTA_B, last], [DELTA_B, last])  # meets the constraints with equality
        close(f.implemented_residual(2, DELTA, DELTA_B, w_min, XI), largest_gap(two)[0])
    assert tightest > 0.9
    return {"random": tightest}


def check_prop8(f: Formulas) -> dict[str, float]:
    tightest, without_slack = 0.0, 0.0
    for delta_b in (DELTA_B, 0.8 * DELTA):
        for pair in random_pairs():
            for w_min in (0.5, 0.8):
                ratio, excess = _prop8_on_random(f, pair, linear_weights(pair.horizon, w_min), delta_b)
                tightest, without_slack = max(tightest, ratio), max(without_slack, excess)
    assert tightest > 0.4
    assert without_slack > 2  # Theorem 1's residual alone does not cover the implemented constraint
    shares = [_prop8_attained(f, horizon, weights) for horizon in HORIZONS for weights in monotone_schedules(horizon)]
    return {"random": tightest, "over Theorem 1 alone": without_slack, "implemented polytope": min(shares)}


def _prop8_on_random(f: Formulas, pair: Pair, weights: Tensor, delta_b: float) -> tuple[float, float]:
    pair = model.project_pathwise(pair, weights, DELTA, delta_b)
    spent = (weights * pair.along_paths(pair.divergence)).cumsum(-1)
    total = weights.cumsum(-1)
    below(spent, DELTA + delta_b * (total - weights))  # Eq. 8 along every path
    below((weights * pair.mean_divergence).cumsum(-1), DELTA + delta_b * total)
    token_bound = bound.per_token_bound(DELTA, weights)
    residual = bound.residual_constant(pair.horizon, token_bound, delta_b, XI)
    slack = f.slack_term(pair.horizon, DELTA, token_bound, weights[0], XI)
    return below(largest_gap(pair), residual + slack), float((largest_gap(pair) / residual).max())


def _prop8_attained(f: Formulas, horizon: int, weights: Tensor) -> float:
    """The slack is what P_m <= delta + delta_b W_m adds, for models and for the polytope; Eq. 8 itself adds less."""
    delta_b, delta = 0.2 * SMALL, 0.3 * SMALL
    pair = model.saturating_pair([delta_b + delta / float(weights[0]), *[delta_b] * (horizon - 2)], SMALL)
    limits = delta + delta_b * weights.cumsum(-1)
    close((weights * pair.mean_divergence).cumsum(-1)[0, :-1], limits[:-1], tolerance=1e-6)
    token_bound = float(pair.largest_divergence.amax())
    covered = bound.residual_constant(horizon, token_bound, delta_b, XI) + f.slack_term(
        horizon, delta, token_bound, weights[0], XI
    )
    attained(largest_gap(pair), covered, horizon * token_bound)

    coefficients = 4 * XI * token_bound * torch.arange(horizon - 1, 0, -1, dtype=torch.float64)
    rows = prefix_rows(weights[:-1])
    close(maximum(coefficients, rows, limits[:-1]), covered)
    implemented = (limits - delta_b * weights)[:-1]  # delta + delta_b W_{m-1}
    capped = torch.full_like(implemented, delta)
    worst = maximum(coefficients, torch.cat([rows, weights[:-1].diag()]), torch.cat([implemented, capped]))
    return below(torch.tensor(worst, dtype=torch.float64), covered)


def check_terminal_only(f: Formulas) -> dict[str, float]:
    shares = {}
    for horizon in HORIZONS:
        ones = torch.ones(horizon - 1, dtype=torch.float64)
        coefficients = torch.arange(horizon - 1, 0, -1, dtype=torch.float64)
        limits = DELTA_B * ones.cumsum(-1)
        every_prefix = maximum(coefficients, prefix_rows(ones), limits)
        terminal = maximum(coefficients, ones.unsqueeze(0), limits[-1:])
        all_tokens = maximum(coefficients, ones.unsqueeze(0), limits[-1:] + DELTA_B)
        close(f.terminal_only_ratio(horizon), terminal / every_prefix, tolerance=1e-12)
        close(2.0, all_tokens / every_prefix, tolerance=1e-12)

        delta_b = 0.2 * SMALL / horizon
        first = (horizon - 1) * delta_b / (1 + SMALL * (horizon - 2))
        pair = model.deviating_pair([first, *[1e-12] * (horizon - 2), SMALL], [SMALL] * horizon)
        close(pair.mean_divergence[0, :-1].sum(), (horizon - 1) * delta_b, tolerance=1e-3)
        by_prefix = largest_gap(model.saturating_pair([delta_b] * (horizon - 1), SMALL))
        shares[f"model, T={horizon}"] = float(largest_gap(pair) / by_prefix)
        close(f.terminal_only_ratio(horizon), shares[f"model, T={horizon}"], tolerance=horizon * SMALL)
    return shares


CHECKS: dict[str, Callable[[Formulas], dict[str, float]]] = {
    "lemma2": check_lemma2,
    "lemma3": check_lemma3,
    "prop4": check_prop4,
    "theorem1": check_theorem1,
    "prop5": check_prop5,
    "corollary6": check_corollary6,
    "corollary7": check_corollary7,
    "prop8": check_prop8,
    "terminal_only": check_terminal_only,
}
