"""The constants and the certificate of a batch by hand. The theory itself is verified in tests/theory."""

import pytest
import torch

from cppo_verl.trust_region import bound


def test_constants_by_hand():
    ratio = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64)
    assert float(bound.surrogate_terms(ratio)) == 1.0 - 0.5 + 2.0
    # (2 - 1)(1 - 1.5) + (0.5 - 1)(1 - 3) + (3 - 1)(1 - 1); telescoping: surrogate - gap = product - 1
    assert float(bound.gap_terms(ratio)) == -0.5 + 1.0 + 0.0 == 2.5 - (2.0 * 0.5 * 3.0 - 1)
    # 4 * 2 * (0.1 (0.2 + 0.3) + 0.2 * 0.3)
    mean, levels = torch.tensor([0.1, 0.2, 9.0]).double(), torch.tensor([9.0, 0.2, 0.3]).double()
    assert float(bound.gap_bound(mean, levels, 2.0)) == pytest.approx(0.88)
    # delta 0.15, delta_b 0.02, w_min 0.8, T = 10: 2 * 90 * 0.1875 * 0.02
    assert bound.residual_constant(10, 0.1875, 0.02) == pytest.approx(0.675)


def test_certificate_by_hand_with_a_hole():
    """Valid tokens have D = 0.1, 0.2, 0.4 and w = 1, 0.75, 0.5; lbar = 0.25/0.5; the second row is empty."""
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    divergence = torch.tensor([[0.1, 7.0, 0.2, 0.4, torch.nan], [5.0, 5.0, 5.0, 5.0, torch.inf]])
    weights = torch.tensor([[1.0, 0.0, 0.75, 0.5, 0.0], [0.0] * 5])
    result = bound.certificate(divergence, weights, mask, delta=0.25, delta_b=0.1)
    assert [float(x) for x in result] == pytest.approx(
        [4 * 0.5 * (2 * 0.1 + 1 * 0.2), 2 * 3 * 2 * 0.5 * 0.1, 0.8 / 0.6]
    )
