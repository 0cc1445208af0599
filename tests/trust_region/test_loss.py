"""The shared surrogate and one call from tensors to a loss: value, gradient, cap, and how tokens leave autograd."""

import math

import pytest
import torch

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.knobs import KnobError, TrustRegionKnobs
from cppo_verl.trust_region.loss import coefficients, loss_matrix, policy_loss
from cppo_verl.trust_region.tokens import Tokens
from tests.helpers import batch_of, random_batch


def tokens_of(log_prob, old_log_prob, advantages, mask) -> Tokens:
    return batch_of(log_prob, old_log_prob, advantages, mask).tokens()


def verdict_of(tokens: Tokens, gate=None, **more) -> Verdict:
    """All tokens kept, or the given gate."""
    gate = torch.ones_like(tokens.mask) if gate is None else torch.tensor([gate])
    return Verdict(gate, torch.zeros_like(tokens.mask), **more)


def test_coefficient_by_hand():
    """rho = 1/2, 3, 100 (capped at 20) with A = 1, -2, 1; the last token is invalid."""
    tokens = tokens_of(
        [[math.log(0.25), math.log(0.75), math.log(0.5), 0.0]],
        [[math.log(0.5), math.log(0.25), math.log(0.005), 0.0]],
        [[1.0, -2.0, 1.0, 5.0]],
        [[1, 1, 1, 0]],
    )
    everything = verdict_of(tokens)
    assert coefficients(tokens, everything, 20.0).tolist() == [pytest.approx([-0.5, 6, -20, 0])]
    assert coefficients(tokens, everything, 2.0).tolist() == [pytest.approx([-0.5, 4, -2, 0])]
    hard, soft = verdict_of(tokens, [True, False, True, True]), verdict_of(tokens, [0.5, 0.25, -1.0, 1.0])
    assert coefficients(tokens, hard, 20.0).tolist() == [pytest.approx([-0.5, 0, -20, 0])]
    assert coefficients(tokens, soft, 20.0).tolist() == [pytest.approx([-0.25, 1.5, 20, 0])]
    own = verdict_of(tokens, weight=torch.tensor([[0.3, 0.7, 1.0, 1.0]]))
    assert coefficients(tokens, own, 20.0).tolist() == [pytest.approx([-0.3, 1.4, -1, 0])]
    importance = torch.tensor([[0.5, math.inf, 2.0, math.nan]])  # of a masked and of an invalid token it does not enter
    assert coefficients(tokens, hard, 20.0, importance).tolist() == [pytest.approx([-0.25, 0, -40, 0])]


def test_log_ratio_is_clamped_before_exp():
    tokens = tokens_of([[-1.0, -500.0]], [[-500.0, -1.0]], [[1.0, 1.0]], [[1, 1]])
    got = coefficients(tokens, verdict_of(tokens), math.inf)
    assert got[0].tolist() == pytest.approx([-math.exp(20), -math.exp(-20)])


@pytest.mark.parametrize(("garbage", "valid"), [(math.nan, 0), (math.inf, 0), (-math.inf, 0), (-math.inf, 1)])
def test_what_leaves_autograd_before_the_product(garbage: float, valid: int):
    """An invalid token, whatever stands there, one of probability 0, and a masked one: no value and no gradient."""
    log_prob = torch.tensor([[garbage, -1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-2.0 if valid else garbage, -1.0, -1.0]])
    tokens = Tokens.of(log_prob, old, torch.ones(1, 3), torch.tensor([[valid, 1, 1]]))
    matrix = loss_matrix(log_prob, tokens, coefficients(tokens, verdict_of(tokens, [True, False, True]), 20.0))
    assert matrix.tolist() == [[0, 0, 1]]
    assert torch.autograd.grad(matrix.sum(), log_prob)[0].tolist() == [[0, 0, -1]]


def test_bfloat16_log_probs_get_bfloat16_gradients_of_float32_arithmetic():
    log_prob = torch.tensor([[-0.5, -1.0]], dtype=torch.bfloat16, requires_grad=True)
    tokens = Tokens.of(log_prob, torch.tensor([[-0.75, -1.0]]).bfloat16(), torch.ones(1, 2), torch.ones(1, 2))
    coefficient = coefficients(tokens, verdict_of(tokens), 20.0)
    assert coefficient.dtype == torch.float32
    assert coefficient[0].tolist() == pytest.approx([-math.exp(0.25), -1])
    (gradient,) = torch.autograd.grad(loss_matrix(log_prob, tokens, coefficient).sum(), log_prob)
    assert gradient.dtype == torch.bfloat16
    assert gradient[0].tolist() == pytest.approx([-math.exp(0.25), -1], rel=2**-8)


def test_one_call_by_hand():
    """Two valid tokens, mu = 1/2 for both; the first moves 0.1 up and is kept, the second 0.3 up and is masked."""
    batch = batch_of([[math.log(0.6), math.log(0.8), -9.0]], [[math.log(0.5)] * 3], [[2.0] * 3], [[1, 1, 0]])
    log_prob = batch.log_prob.requires_grad_()
    arguments = "dppo", log_prob, batch.old_log_prob, batch.advantages, batch.mask
    loss, reported = policy_loss(*arguments, TrustRegionKnobs(delta=0.15))
    loss.backward()
    assert loss.item() == pytest.approx(-2.0 * 1.2 * math.log(0.6) / 2)
    assert log_prob.grad.tolist() == [[pytest.approx(-2.0 * 1.2 / 2), 0.0, 0.0]]
    assert reported["actor/trust_region/masked_share"] == 0.5
    summed, _ = policy_loss(*arguments, aggregate=lambda losses, mask: losses.sum())  # and the paper's knobs
    assert summed.item() == pytest.approx(2 * loss.item())


def test_what_it_refuses():
    batch = random_batch(seed=3, rows=2, width=4)
    tensors = batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask
    with pytest.raises(KnobError, match="estimator='topk'"):
        policy_loss("cppo", *tensors, TrustRegionKnobs(estimator="topk"))
    with pytest.raises(ValueError, match=r"one \(batch, length\) shape.*response_mask.*\(2, 3\)"):
        policy_loss("cppo", *tensors[:3], batch.mask[:, :3])
    with pytest.raises(ValueError, match="batch, length"):
        policy_loss("cppo", *(x.flatten() for x in tensors))
    with pytest.raises(FloatingPointError, match="advantages"):
        policy_loss("cppo", *tensors[:2], batch.advantages + math.nan, torch.ones_like(batch.mask))
