"""One call from tensors to a loss: what it divides by, what it hands on, and sums that add up."""

import math

import pytest
import torch

from cppo_verl.trust_region.knobs import KnobError, TrustRegionKnobs
from cppo_verl.trust_region.loss import policy_loss
from tests.helpers import batch_of, random_batch


def test_by_hand():
    """Two valid tokens, mu = 1/2 for both; the first moves 0.1 up and is kept, the second 0.3 up and is masked."""
    batch = batch_of([[math.log(0.6), math.log(0.8), -9.0]], [[math.log(0.5)] * 3], [[2.0] * 3], [[1, 1, 0]])
    log_prob = batch.log_prob.requires_grad_()
    arguments = "dppo", log_prob, batch.old_log_prob, batch.advantages, batch.mask
    loss, reported = policy_loss(*arguments, TrustRegionKnobs(delta=0.15))
    loss.backward()
    assert loss.item() == pytest.approx(-2.0 * 1.2 * math.log(0.6) / 2)
    assert log_prob.grad.tolist() == [[pytest.approx(-2.0 * 1.2 / 2), 0.0, 0.0]]
    assert reported["actor/trust_region/masked_share"] == 0.5
    summed, _ = policy_loss(*arguments, TrustRegionKnobs(delta=0.15), aggregate=lambda losses, mask: losses.sum())
    assert summed.item() == pytest.approx(2 * loss.item())


def test_without_knobs_they_are_the_papers():
    batch = random_batch(seed=1, rows=30, width=20)
    tensors = batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask
    assert policy_loss("cppo", *tensors) == policy_loss("cppo", *tensors, TrustRegionKnobs())


def test_what_it_refuses():
    batch = random_batch(seed=3, rows=2, width=4)
    tensors = batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask
    with pytest.raises(KnobError, match="estimator='topk'"):
        policy_loss("cppo", *tensors, TrustRegionKnobs(estimator="topk"))
    with pytest.raises(ValueError, match="one \\(batch, length\\) shape"):
        policy_loss("cppo", batch.log_prob[:1], *tensors[1:])
    with pytest.raises(FloatingPointError, match="advantages"):
        policy_loss("cppo", *tensors[:2], batch.advantages + math.nan, torch.ones_like(batch.mask))
