"""The theory of arXiv 2606.10968 verified on models summed exactly, and the checks themselves put to the test."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cppo_verl.trust_region.bound import certificate, gap_bound, gap_terms, residual_constant, surrogate_terms
from tests.theory import enumerable as model
from tests.theory.checks import CHECKS, DELTA, DELTA_B, XI, largest_gap, linear_weights


@pytest.mark.parametrize("formula", CHECKS, ids=lambda formula: formula.__name__)
def test_statement_holds(formula: Callable):
    CHECKS[formula](formula)


def _from(values: Tensor) -> Tensor:
    return values.flip(-1).cumsum(-1).flip(-1)  # sum over j >= t


MUTANTS: list[tuple[Callable, str, Callable]] = [  # formula, what is wrong, the wrong formula
    (surrogate_terms, "no minus 1", lambda r: r.sum(-1)),
    (surrogate_terms, "product of ratios", lambda r: r.prod(-1) - 1),
    (gap_terms, "sign", lambda r: -gap_terms(r)),
    (gap_terms, "product from t", lambda r: ((r - 1) * (1 - r.flip(-1).cumprod(-1).flip(-1))).sum(-1)),
    (gap_bound, "2 for 4", lambda u, x, xi: gap_bound(u, x, xi) / 2),
    (gap_bound, "5 for 4", lambda u, x, xi: gap_bound(u, x, xi) * 1.25),
    (gap_bound, "xi dropped", lambda u, x, xi: gap_bound(u, x)),
    (gap_bound, "j >= t", lambda u, x, xi: 4 * xi * (u * _from(x)).sum(-1)),
    (gap_bound, "u and l swapped", lambda u, x, xi: gap_bound(x, u, xi)),
    (residual_constant, "4 for 2", lambda n, b, d, xi: 2 * residual_constant(n, b, d, xi)),
    (residual_constant, "1 for 2", lambda n, b, d, xi: residual_constant(n, b, d, xi) / 2),
    (residual_constant, "T^2", lambda n, b, d, xi: 2 * xi * n * n * b * d),
    (residual_constant, "lbar for delta_b", lambda n, b, d, xi: residual_constant(n, b, b, xi)),
    (residual_constant, "xi dropped", lambda n, b, d, xi: residual_constant(n, b, d)),
]


@pytest.mark.parametrize(
    ("formula", "mutant"), [pytest.param(f, wrong, id=f"{f.__name__}: {what}") for f, what, wrong in MUTANTS]
)
def test_mutation_is_caught(formula: Callable, mutant: Callable):
    with pytest.raises(AssertionError):
        CHECKS[formula](mutant)


def test_sums_over_sequences_by_hand():
    """T = 2, two tokens: mu = (1/2, 1/2) twice; pi = (3/4, 1/4), then (1/2, 1/2) after 0 and (1/4, 3/4) after 1."""
    half = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    first = torch.tensor([[[0.75, 0.25]]], dtype=torch.float64)
    second = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]], dtype=torch.float64)
    pair = model.Pair((half[:, :1], half), (first, second))
    assert model.law(pair.pi)[0].tolist() == [0.375, 0.375, 0.0625, 0.1875]
    assert pair.ratio[0].tolist() == [[1.5, 1.0], [1.5, 1.0], [0.5, 0.5], [0.5, 1.5]]
    assert pair.mean_divergence[0].tolist() == [0.25, 0.125]  # D_2 is 0 or 1/4, each with probability 1/2
    reward = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert pair.improvement(reward).tolist() == [0.1875 - 0.25]
    # gap of sequence (1, 1): (1/2 - 1)(1 - 3/2) = 1/4; it carries mu-probability 1/4
    assert float((pair.law * reward * gap_terms(pair.ratio)).sum()) == 0.0625
    # |gap| is 1/4 on the two sequences that start with 1, 0 elsewhere: bound 4 * u_1 * l_2 = 4 * 1/4 * 1/4
    assert float(largest_gap(pair)) == XI * 0.125
    assert float(gap_bound(pair.mean_divergence, pair.largest_divergence)) == 0.25


@pytest.mark.parametrize("horizon", [2, 5])
def test_certificate_bounds_the_gap_of_an_enumerated_batch(horizon: int):
    """With mu uniform a batch of every sequence once averages exactly over mu."""
    pair = model.random_pair(7, 1, 3, horizon)
    uniform = tuple(torch.full_like(table, 1 / 3) for table in pair.mu)
    weights = linear_weights(horizon, 0.8)
    thresholds = torch.full_like(weights, DELTA)
    pair = model.project_in_expectation(model.Pair(uniform, pair.pi), weights, thresholds, DELTA_B)
    batch = pair.along_paths(pair.divergence)[0]
    result = certificate(batch, weights.expand_as(batch), torch.ones_like(batch), DELTA, DELTA_B)

    costs = 4 * DELTA / 0.8 * torch.arange(horizon - 1, -1, -1, dtype=torch.float64)
    assert float(result.realised) == pytest.approx(float((costs * pair.mean_divergence[0]).sum()), rel=1e-12)
    assert float(result.worst_case) == pytest.approx(residual_constant(horizon, DELTA / 0.8, DELTA_B))
    assert float(largest_gap(pair)) / XI <= float(result.realised) <= float(result.worst_case) * (1 + 1e-12)
    assert float(result.ratio) > 0.5
