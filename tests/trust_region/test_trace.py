"""NFPO's forward trace: by hand, and as a weight (over any mask: test_properties)."""

import dataclasses

import pytest
import torch

from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate
from cppo_verl.trust_region.trace import forward_trace
from tests.helpers import Batch, random_batch


def test_by_hand():
    """rho = 2 .5 3 4: the next one's ratio .5 3 4 1, the next two's 1.5 12 4 1, all later ones' 6 12 4 1."""
    log_ratio = torch.tensor([[2.0, 0.5, 3.0, 4.0]], dtype=torch.float64).log()
    tokens = Batch(log_ratio - 3, torch.full_like(log_ratio, -3), log_ratio, torch.ones(1, 4)).tokens()
    assert forward_trace(tokens, 1).tolist() == [[1, 1, 1, 1]]
    assert forward_trace(tokens, 2).tolist() == [pytest.approx([0.5, 3, 4, 1])]
    assert forward_trace(tokens, 3).tolist() == [pytest.approx([1.5, 12, 4, 1])]
    for steps in (4, 5, 100):
        assert forward_trace(tokens, steps).tolist() == [pytest.approx([6, 12, 4, 1])]


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_the_weight_is_both_cut_and_the_gate_is_the_rules(gate: str):
    batch = random_batch(seed=3, rows=120, width=15)
    batch.log_prob[::5] = (batch.log_prob[::5] + 4).clamp(max=-1e-7)
    plain = TrustRegionKnobs(gate=gate, ratio_cap=3.0)
    traced = dataclasses.replace(plain, trace=3, trace_cap=1.1)
    before, _ = evaluate("cppo", batch.tokens(), plain)
    after, _ = evaluate("cppo", batch.tokens(), traced)
    valid = batch.mask.bool()
    assert torch.equal(before.gate[valid], after.gate[valid])
    assert after.weight is not None and after.capped is not None
    trace, ratio = forward_trace(batch.tokens(), 3), batch.tokens().ratio
    expected = trace.clamp_max(1.1) * ratio.clamp_max(3.0)
    torch.testing.assert_close(after.weight[valid], expected[valid])
    assert torch.equal(after.capped[valid], ((trace > 1.1) | (ratio > 3.0))[valid])
    assert 0 < after.capped[valid].double().mean() < 1
