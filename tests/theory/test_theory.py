"""The theory of arXiv 2606.10968 verified on models summed exactly, and the checks themselves put to the test."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from cppo_verl.trust_region import bound
from tests.theory import enumerable as model
from tests.theory.checks import CHECKS, DELTA, DELTA_B, XI, Formulas, largest_gap, linear_weights
from tests.theory.linear_program import maximum, prefix_rows


@lru_cache
def tightness(check: str) -> dict[str, float]:
    return CHECKS[check](Formulas())


@pytest.mark.parametrize("check", CHECKS)
def test_statement_holds(check: str):
    print(check, tightness(check))


def _after(values: Tensor) -> Tensor:
    return values.flip(-1).cumsum(-1).flip(-1)  # sum over j >= t


def _lambda(length: int, token_bound: float | Tensor, xi: float, shift: int = 0, factor: float = 4.0) -> Tensor:
    later = torch.arange(length - 1, -1, -1, dtype=torch.float64) + shift
    return factor * xi * token_bound * later


# (check, formula, what is wrong, the wrong formula)
MUTANTS: list[tuple[str, str, str, Callable]] = [
    ("lemma2", "surrogate_terms", "no minus 1", lambda r: r.sum(-1)),
    ("lemma2", "surrogate_terms", "product of ratios", lambda r: r.prod(-1) - 1),
    ("lemma2", "surrogate_terms", "last token left out", lambda r: (r - 1)[..., :-1].sum(-1)),
    ("lemma2", "gap_terms", "sign", lambda r: -bound.gap_terms(r)),
    ("lemma2", "gap_terms", "product from t", lambda r: ((r - 1) * (1 - r.flip(-1).cumprod(-1).flip(-1))).sum(-1)),
    ("lemma2", "gap_terms", "product up to t", lambda r: ((r - 1) * (1 - r.cumprod(-1))).sum(-1)),
    ("lemma2", "gap_terms", "absolute values", lambda r: bound.gap_terms(r).abs()),
    ("lemma2", "gap_terms", "ratio for ratio - 1", lambda r: bound.gap_terms(r) + bound.gap_terms(r) / r[..., 0]),
    ("lemma3", "suffix_tv_bound", "j >= t", lambda x: 1 - torch.exp(_after(torch.log1p(-x)))),
    ("lemma3", "suffix_tv_bound", "j > t + 1", lambda x: torch.roll(bound.suffix_tv_bound(x), -1, -1)),
    ("lemma3", "suffix_tv_bound", "1 + l", lambda x: torch.expm1(bound.suffix_tv_sum(torch.log1p(x)))),
    ("lemma3", "suffix_tv_bound", "the sum (looser)", bound.suffix_tv_sum),
    ("lemma3", "suffix_tv_bound", "half", lambda x: bound.suffix_tv_bound(x) / 2),
    ("lemma3", "suffix_tv_bound", "vacuous", lambda x: torch.cat([x[..., 1:] * 0 + 1, x[..., :1] * 0], -1)),
    ("lemma3", "suffix_tv_sum", "j >= t", _after),
    ("lemma3", "suffix_tv_sum", "max for sum", lambda x: bound.suffix_tv_sum(x).clamp_max(x.max())),
    ("lemma3", "suffix_tv_sum", "doubled", lambda x: 2 * bound.suffix_tv_sum(x)),
    ("lemma3", "suffix_tv_sum", "sum up to t", lambda x: x.cumsum(-1) - x),
    ("prop4", "gap_bound", "2 for 4", lambda u, x, xi: bound.gap_bound(u, x, xi) / 2),
    ("prop4", "gap_bound", "8 for 4", lambda u, x, xi: bound.gap_bound(u, x, xi) * 2),
    ("prop4", "gap_bound", "5 for 4", lambda u, x, xi: bound.gap_bound(u, x, xi) * 1.25),
    ("prop4", "gap_bound", "xi dropped", lambda u, x, xi: bound.gap_bound(u, x)),
    ("prop4", "gap_bound", "xi squared", lambda u, x, xi: bound.gap_bound(u, x, xi * xi)),
    ("prop4", "gap_bound", "j >= t", lambda u, x, xi: 4 * xi * (u * _after(x)).sum(-1)),
    ("prop4", "gap_bound", "j < t", lambda u, x, xi: 4 * xi * (u * (x.cumsum(-1) - x)).sum(-1)),
    ("prop4", "gap_bound", "u and l swapped", lambda u, x, xi: bound.gap_bound(x, u, xi)),
    ("prop4", "gap_bound", "max of u", lambda u, x, xi: bound.gap_bound(u.amax(-1, keepdim=True), x, xi)),
    ("theorem1", "per_token_bound", "min", lambda c, w: (c / w).amin(-1)),
    ("theorem1", "per_token_bound", "c w", lambda c, w: (c * w).amax(-1)),
    ("theorem1", "per_token_bound", "c alone", lambda c, w: (c + 0 * w).amax(-1)),
    ("theorem1", "per_token_bound", "max c / min w", lambda c, w: (c + 0 * w).amax(-1) / w.amin(-1)),
    ("theorem1", "per_token_bound", "mean", lambda c, w: (c / w).mean(-1)),
    ("theorem1", "lambda_weights", "T - t + 1", lambda n, b, xi: _lambda(n, b, xi, shift=1)),
    ("theorem1", "lambda_weights", "2 for 4", lambda n, b, xi: _lambda(n, b, xi, factor=2)),
    ("theorem1", "lambda_weights", "6 for 4", lambda n, b, xi: _lambda(n, b, xi, factor=6)),
    ("theorem1", "lambda_weights", "reversed", lambda n, b, xi: _lambda(n, b, xi).flip(-1)),
    ("theorem1", "lambda_weights", "xi dropped", lambda n, b, xi: _lambda(n, b, 1.0)),
    ("theorem1", "lambda_weights", "lbar dropped", lambda n, b, xi: _lambda(n, 1.0, xi)),
    ("theorem1", "residual_constant", "4 for 2", lambda n, b, d, xi: 2 * bound.residual_constant(n, b, d, xi)),
    ("theorem1", "residual_constant", "1 for 2", lambda n, b, d, xi: bound.residual_constant(n, b, d, xi) / 2),
    ("theorem1", "residual_constant", "T^2", lambda n, b, d, xi: 2 * xi * n * n * b * d),
    ("theorem1", "residual_constant", "(T - 1)^2", lambda n, b, d, xi: 2 * xi * (n - 1) ** 2 * b * d),
    ("theorem1", "residual_constant", "T (T + 1)", lambda n, b, d, xi: 2 * xi * n * (n + 1) * b * d),
    ("theorem1", "residual_constant", "delta_b dropped", lambda n, b, d, xi: bound.residual_constant(n, b, 1.0, xi)),
    ("theorem1", "residual_constant", "lbar for delta_b", lambda n, b, d, xi: bound.residual_constant(n, b, b, xi)),
    ("theorem1", "residual_constant", "delta_b for lbar", lambda n, b, d, xi: bound.residual_constant(n, d, d, xi)),
    ("theorem1", "residual_constant", "xi dropped", lambda n, b, d, xi: bound.residual_constant(n, b, d)),
    ("theorem1", "residual_constant", "sign", lambda n, b, d, xi: -bound.residual_constant(n, b, d, xi)),
    ("prop5", "influence_per_budget", "T - t + 1", lambda w: bound.influence_per_budget(w) + 1 / w),
    ("prop5", "influence_per_budget", "times w", lambda w: bound.influence_per_budget(w) * w * w),
    ("prop5", "influence_per_budget", "weight of t + 1", lambda w: bound.influence_per_budget(torch.roll(w, -1))),
    ("prop5", "linear_influence_drop", "w_t squared", lambda w, m: m / (w[:-1] * w[:-1])),
    ("prop5", "linear_influence_drop", "1 for w_min", lambda w, m: 1 / (w[:-1] * w[1:])),
    ("prop5", "linear_influence_drop", "sign", lambda w, m: -m / (w[:-1] * w[1:])),
    ("prop5", "linear_influence_drop", "one more", lambda w, m: m / (w * torch.roll(w, -1))),
    ("corollary6", "uniform_residual", "4 for 2", lambda n, d, xi: 2 * bound.uniform_residual(n, d, xi)),
    ("corollary6", "uniform_residual", "1 for 2", lambda n, d, xi: bound.uniform_residual(n, d, xi) / 2),
    ("corollary6", "uniform_residual", "delta once", lambda n, d, xi: 2 * xi * n * (n - 1) * d),
    ("corollary6", "uniform_residual", "T^2", lambda n, d, xi: 2 * xi * n * n * d * d),
    ("corollary6", "uniform_residual", "xi dropped", lambda n, d, xi: bound.uniform_residual(n, d)),
    ("corollary6", "prefix_ratio", "inverse", lambda d, b: d / b),
    ("corollary6", "prefix_ratio", "squared", lambda d, b: (b / d) ** 2),
    ("corollary6", "prefix_ratio", "delta_b alone", lambda d, b: b),
    ("corollary7", "implemented_residual", "no w_min", lambda n, d, b, m, xi: bound.residual_constant(n, d, b, xi)),
    ("corollary7", "implemented_residual", "times w_min", lambda n, d, b, m, xi: 2 * xi * n * (n - 1) * d * b * m),
    ("corollary7", "implemented_residual", "w_min^2", lambda n, d, b, m, xi: 2 * xi * n * (n - 1) * d * b / m**2),
    ("corollary7", "implemented_residual", "T^2", lambda n, d, b, m, xi: 2 * xi * n * n * d * b / m),
    ("corollary7", "implemented_residual", "4 for 2", lambda n, d, b, m, xi: 4 * xi * n * (n - 1) * d * b / m),
    ("corollary7", "implemented_residual", "xi dropped", lambda n, d, b, m, xi: 2 * n * (n - 1) * d * b / m),
    ("corollary7", "implemented_residual", "delta_b dropped", lambda n, d, b, m, xi: 2 * xi * n * (n - 1) * d / m),
    ("corollary7", "implemented_ratio", "no w_min", lambda d, b, m: b / d),
    ("corollary7", "implemented_ratio", "times w_min", lambda d, b, m: b * m / d),
    ("corollary7", "implemented_ratio", "inverse", lambda d, b, m: d * m / b),
    ("prop8", "slack_term", "2 for 4", lambda n, d, b, w, xi: bound.slack_term(n, d, b, w, xi) / 2),
    ("prop8", "slack_term", "8 for 4", lambda n, d, b, w, xi: bound.slack_term(n, d, b, w, xi) * 2),
    ("prop8", "slack_term", "T for T - 1", lambda n, d, b, w, xi: 4 * xi * b * n * d / w),
    ("prop8", "slack_term", "no w_1", lambda n, d, b, w, xi: bound.slack_term(n, d, b, 1.0, xi)),
    ("prop8", "slack_term", "times w_1", lambda n, d, b, w, xi: bound.slack_term(n, d, b, 1 / w, xi)),
    ("prop8", "slack_term", "none", lambda n, d, b, w, xi: 0.0),
    ("prop8", "slack_term", "lbar for delta", lambda n, d, b, w, xi: bound.slack_term(n, b, b, w, xi)),
    ("prop8", "slack_term", "delta for lbar", lambda n, d, b, w, xi: bound.slack_term(n, d, d, w, xi)),
    ("prop8", "slack_term", "xi dropped", lambda n, d, b, w, xi: bound.slack_term(n, d, b, w)),
    ("prop8", "slack_term", "sign", lambda n, d, b, w, xi: -bound.slack_term(n, d, b, w, xi)),
    ("terminal_only", "terminal_only_ratio", "2", lambda n: 2.0),
    ("terminal_only", "terminal_only_ratio", "2 - 1/T", lambda n: 2 - 1 / n),
    ("terminal_only", "terminal_only_ratio", "1 - 1/T", lambda n: 1 - 1 / n),
    ("terminal_only", "terminal_only_ratio", "2 - 2/(T - 1)", lambda n: 2 - 2 / (n - 1)),
    ("terminal_only", "terminal_only_ratio", "2 + 2/T", lambda n: 2 + 2 / n),
]


@pytest.mark.parametrize(
    ("check", "formula", "mutant"),
    [pytest.param(check, formula, wrong, id=f"{formula}: {what}") for check, formula, what, wrong in MUTANTS],
)
def test_mutation_is_caught(check: str, formula: str, mutant: Callable):
    tightness(check)  # passes with the formulas as they are
    with pytest.raises(AssertionError):
        CHECKS[check](replace(Formulas(), **{formula: mutant}))


def test_every_formula_has_mutants():
    mutated = {formula for _, formula, _, _ in MUTANTS}
    assert mutated == {field.name for field in fields(Formulas)}


def test_hypothesis_on_the_schedule_is_needed():
    """Weights that rise and fall again break the monotone g_t, and then the polytope exceeds Theorem 1's constant."""
    weights = torch.tensor([1.0, 0.1, 1.0, 1.0], dtype=torch.float64)
    assert bool((bound.influence_per_budget(weights).diff() > 0).any())
    coefficients = bound.lambda_weights(4, 1.0)[:-1]
    worst = maximum(coefficients, prefix_rows(weights[:-1]), DELTA_B * weights[:-1].cumsum(-1))
    assert worst > 2 * bound.residual_constant(4, 1.0, DELTA_B)


def test_vertex_enumeration_finds_a_known_optimum():
    """max 3x + 2y subject to x + y <= 4, x + 3y <= 6, x <= 3 is 11, at (3, 1)."""
    rows = torch.tensor([[1.0, 1.0], [1.0, 3.0], [1.0, 0.0]], dtype=torch.float64)
    limits = torch.tensor([4.0, 6.0, 3.0], dtype=torch.float64)
    assert maximum(torch.tensor([3.0, 2.0], dtype=torch.float64), rows, limits) == pytest.approx(11.0, abs=1e-12)


def test_sums_over_sequences_by_hand():
    """T = 2, two tokens: mu = (1/2, 1/2) twice; pi = (3/4, 1/4), then (1/2, 1/2) after 0 and (1/4, 3/4) after 1."""
    half = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    first = torch.tensor([[[0.75, 0.25]]], dtype=torch.float64)
    second = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]], dtype=torch.float64)
    pair = model.Pair((half[:, :1], half), (first, second))
    assert model.law(pair.pi)[0].tolist() == [0.375, 0.375, 0.0625, 0.1875]
    assert pair.ratio[0].tolist() == [[1.5, 1.0], [1.5, 1.0], [0.5, 0.5], [0.5, 1.5]]
    assert pair.mean_divergence[0].tolist() == [0.25, 0.125]  # D_2 is 0 or 1/4, each with probability 1/2
    assert pair.suffix_tv(1)[0].tolist() == [0.0, 0.25]
    assert pair.suffix_tv(0)[0].tolist() == [0.25]
    reward = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert pair.improvement(reward).tolist() == [0.1875 - 0.25]
    # gap of sequence (1, 1): (1/2 - 1)(1 - 3/2) = 1/4; it carries mu-probability 1/4
    assert float((pair.law * reward * bound.gap_terms(pair.ratio)).sum()) == 0.0625
    # |gap| is 1/4 on the two sequences that start with 1, 0 elsewhere: bound 4 * u_1 * l_2 = 4 * 1/4 * 1/4
    assert float(largest_gap(pair)) == XI * 0.125
    assert float(bound.gap_bound(pair.mean_divergence, pair.largest_divergence)) == 0.25


@pytest.mark.parametrize("horizon", [2, 3, 5])
def test_certificate_bounds_the_gap_of_an_enumerated_batch(horizon: int):
    """With mu uniform a batch of every sequence once averages exactly over mu."""
    vocabulary = 3
    pair = model.random_pair(7, 1, vocabulary, horizon)
    uniform = tuple(torch.full_like(table, 1 / vocabulary) for table in pair.mu)
    weights = linear_weights(horizon, 0.8)
    thresholds = torch.full_like(weights, DELTA)
    pair = model.project_in_expectation(model.Pair(uniform, pair.pi), weights, thresholds, DELTA_B)
    batch = pair.along_paths(pair.divergence)[0]
    mask = torch.ones_like(batch, dtype=torch.bool)
    result = bound.certificate(batch, weights.expand_as(batch), mask, DELTA, DELTA_B, XI)

    costs = bound.lambda_weights(horizon, DELTA / 0.8, XI)
    assert float(result.realised) == pytest.approx(float((costs * pair.mean_divergence[0]).sum()), rel=1e-12)
    assert float(result.worst_case) == pytest.approx(bound.implemented_residual(horizon, DELTA, DELTA_B, 0.8, XI))
    assert float(largest_gap(pair)) <= float(result.realised) <= float(result.worst_case) * (1 + 1e-12)
    assert float(result.ratio) > 0.5
