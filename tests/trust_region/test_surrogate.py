"""The shared surrogate: its value and gradient, the cap, and how masked tokens leave autograd."""

import math

import pytest
import torch

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.surrogate import coefficients, loss_matrix
from cppo_verl.trust_region.tokens import Tokens
from tests import reference
from tests.helpers import random_batch


def tokens_of(log_prob, old_log_prob, advantages, mask) -> Tokens:
    floats = [torch.tensor(x, dtype=torch.float64) for x in (log_prob, old_log_prob, advantages)]
    return Tokens.of(*floats, torch.tensor(mask))


def keep_all(tokens: Tokens) -> Verdict:
    everything = torch.ones_like(tokens.mask)
    return Verdict(gate=everything, over_token=~everything)


def test_coefficient_by_hand():
    """rho = 1/2, 3, 100 (capped at 20) with A = 1, -2, 1; the last token is invalid."""
    tokens = tokens_of(
        [[math.log(0.25), math.log(0.75), math.log(0.5), 0.0]],
        [[math.log(0.5), math.log(0.25), math.log(0.005), 0.0]],
        [[1.0, -2.0, 1.0, 5.0]],
        [[1, 1, 1, 0]],
    )
    assert coefficients(tokens, keep_all(tokens), 20.0).tolist() == [pytest.approx([-0.5, 6, -20, 0])]
    assert coefficients(tokens, keep_all(tokens), 2.0).tolist() == [pytest.approx([-0.5, 4, -2, 0])]


def test_log_ratio_is_clamped_before_exp():
    tokens = tokens_of([[-1.0, -500.0]], [[-500.0, -1.0]], [[1.0, 1.0]], [[1, 1]])
    got = coefficients(tokens, keep_all(tokens), math.inf)
    assert got[0].tolist() == pytest.approx([-math.exp(20), -math.exp(-20)])


def test_hard_and_soft_gates_multiply():
    tokens = tokens_of([[-1.0] * 3], [[-1.0] * 3], [[2.0] * 3], [[1, 1, 1]])
    nothing = torch.zeros_like(tokens.mask)
    hard = Verdict(gate=torch.tensor([[True, False, True]]), over_token=nothing)
    assert coefficients(tokens, hard, 20.0).tolist() == [[-2, 0, -2]]
    soft = Verdict(gate=torch.tensor([[1.0, 0.25, 0.0]]).double(), over_token=nothing)
    assert coefficients(tokens, soft, 20.0).tolist() == [[-2, -0.5, 0]]


def test_a_rule_may_bring_its_own_weight():
    tokens = tokens_of([[-1.0, -1.0]], [[-2.0, -2.0]], [[1.0, -1.0]], [[1, 1]])
    weight = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    verdict = Verdict(gate=tokens.mask, over_token=~tokens.mask, weight=weight)
    assert coefficients(tokens, verdict, 20.0).tolist() == [[-0.3, 0.7]]
    assert weight.tolist() == [[0.3, 0.7]]


def test_gradient_against_loops_and_no_graph_in_the_coefficient():
    batch = random_batch(seed=0, rows=50, width=12)
    log_prob = batch.log_prob.clone().requires_grad_()
    tokens = Tokens.of(log_prob, batch.old_log_prob, batch.advantages, batch.mask)
    coefficient = coefficients(tokens, keep_all(tokens), 20.0)
    assert not coefficient.requires_grad
    loss_matrix(log_prob, tokens, coefficient).sum().backward()
    assert log_prob.grad is not None
    for row, response in enumerate(batch.responses()):
        expected = [reference.coefficient(response, i) if ok else 0.0 for i, ok in enumerate(response.valid)]
        assert log_prob.grad[row].tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_dropped_tokens_leave_autograd_before_the_product(garbage: float):
    """Not valid, and masked: whatever stands there, value and gradient are 0."""
    log_prob = torch.tensor([[garbage, -1.0, -1.0]], requires_grad=True)
    tokens = Tokens.of(log_prob, torch.tensor([[garbage, -1.0, -1.0]]), torch.ones(1, 3), torch.tensor([[0, 1, 1]]))
    verdict = Verdict(gate=torch.tensor([[True, False, True]]), over_token=torch.zeros(1, 3, dtype=torch.bool))
    matrix = loss_matrix(log_prob, tokens, coefficients(tokens, verdict, 20.0))
    matrix.sum().backward()
    assert log_prob.grad is not None
    assert matrix.tolist() == [[0, 0, 1]]
    assert log_prob.grad.tolist() == [[0, 0, -1]]


def test_a_token_of_probability_zero_has_no_gradient():
    log_prob = torch.tensor([[-math.inf, -1.0]], requires_grad=True)
    tokens = Tokens.of(log_prob, torch.tensor([[-2.0, -1.0]]), torch.ones(1, 2), torch.ones(1, 2))
    matrix = loss_matrix(log_prob, tokens, coefficients(tokens, keep_all(tokens), 20.0))
    matrix.sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [[0, -1]]
    assert torch.isfinite(matrix).all()


def test_importance_multiplies_and_never_enters_where_a_token_adds_nothing():
    """The first token is invalid, the second masked; the third has weight 1/2."""
    tokens = tokens_of([[-1.0] * 3], [[-1.0] * 3], [[2.0] * 3], [[0, 1, 1]])
    verdict = Verdict(gate=torch.tensor([[True, False, True]]), over_token=torch.zeros(1, 3, dtype=torch.bool))
    importance = torch.tensor([[math.nan, math.inf, 0.5]], dtype=torch.float64)
    assert coefficients(tokens, verdict, 20.0, importance).tolist() == [[0, 0, -1]]


def test_bfloat16_log_probs_get_bfloat16_gradients_of_float32_arithmetic():
    log_prob = torch.tensor([[-0.5, -1.0]], dtype=torch.bfloat16, requires_grad=True)
    old = torch.tensor([[-0.75, -1.0]], dtype=torch.bfloat16)
    tokens = Tokens.of(log_prob, old, torch.ones(1, 2), torch.ones(1, 2))
    coefficient = coefficients(tokens, keep_all(tokens), 20.0)
    assert coefficient.dtype == torch.float32
    assert coefficient[0].tolist() == pytest.approx([-math.exp(0.25), -1])
    loss_matrix(log_prob, tokens, coefficient).sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.dtype == torch.bfloat16
    assert log_prob.grad[0].tolist() == pytest.approx([-math.exp(0.25), -1], rel=2**-8)
