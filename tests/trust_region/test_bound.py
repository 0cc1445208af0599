"""Constants of the theory by hand, and the certificate of a batch. The theory itself is verified in tests/theory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cppo_verl.trust_region import bound, schedule


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestConstants:
    def test_terms_of_one_response(self):
        ratio = f64(2.0, 0.5, 3.0)
        assert float(bound.surrogate_terms(ratio)) == 1.0 - 0.5 + 2.0
        # (2 - 1)(1 - 1.5) + (0.5 - 1)(1 - 3) + (3 - 1)(1 - 1)
        assert float(bound.gap_terms(ratio)) == -0.5 + 1.0 + 0.0
        # telescoping: surrogate - gap = product - 1
        assert float(bound.surrogate_terms(ratio) - bound.gap_terms(ratio)) == 2.0 * 0.5 * 3.0 - 1

    def test_suffix_bounds(self):
        levels = f64(0.9, 0.5, 0.2)
        torch.testing.assert_close(bound.suffix_tv_bound(levels), f64(0.6, 0.2, 0.0))  # 1 - 0.5 * 0.8
        torch.testing.assert_close(bound.suffix_tv_sum(levels), f64(0.7, 0.2, 0.0))
        assert bound.suffix_tv_bound(f64(0.3, 1.0)).tolist() == [1.0, 0.0]

    def test_gap_bound(self):
        # 4 * 2 * (0.1 (0.2 + 0.3) + 0.2 * 0.3)
        value = bound.gap_bound(f64(0.1, 0.2, 9.0), f64(9.0, 0.2, 0.3), 2.0)
        assert float(value) == pytest.approx(0.88)

    def test_lambda_weights(self):
        assert bound.lambda_weights(4, 0.5, 2.0).tolist() == [12.0, 8.0, 4.0, 0.0]
        assert bound.lambda_weights(3, f64(1.0, 0.25)).tolist() == [[8.0, 4.0, 0.0], [2.0, 1.0, 0.0]]
        assert bound.lambda_weights(1, 0.5).tolist() == [0.0]

    def test_per_token_bound(self):
        assert float(bound.per_token_bound(0.2, f64(1.0, 0.5, 0.8))) == 0.4
        assert float(bound.per_token_bound(f64(0.3, 0.1, 0.2), f64(1.0, 0.5, 0.8))) == 0.3

    def test_residuals_of_the_base_model_setting(self):
        """delta 0.15, delta_b 0.02, w_min 0.8, T = 10, xi = 1."""
        assert bound.residual_constant(10, 0.1875, 0.02) == pytest.approx(0.675)  # 2 * 90 * 0.1875 * 0.02
        assert bound.implemented_residual(10, 0.15, 0.02, 0.8) == pytest.approx(0.675)
        assert bound.uniform_residual(10, 0.15) == pytest.approx(4.05)
        assert bound.implemented_ratio(0.15, 0.02, 0.8) == pytest.approx(1 / 6)
        assert bound.prefix_ratio(0.15, 0.02) == pytest.approx(2 / 15)
        assert bound.slack_term(10, 0.15, 0.1875, 1.0) == pytest.approx(1.0125)  # 4 * 0.1875 * 9 * 0.15
        assert bound.slack_term(10, 0.15, 0.1875, 0.5, 2.0) == pytest.approx(4.05)
        assert bound.terminal_only_ratio(10) == pytest.approx(1.8)

    def test_influence_of_three_tokens(self):
        weights = f64(1.0, 0.75, 0.5)  # linear, w_min = 1/2
        torch.testing.assert_close(bound.influence_per_budget(weights), f64(2.0, 4 / 3, 0.0))
        torch.testing.assert_close(bound.linear_influence_drop(weights, 0.5), f64(2 / 3, 4 / 3))


def naive_certificate(
    divergence: Tensor, weights: Tensor, mask: Tensor, delta: float, delta_b: list[float], xi: float
) -> tuple[float, float, int]:
    """Realised and worst case by loops over responses and tokens."""
    realised, worst, responses = [], [], 0
    for row in range(divergence.shape[0]):
        columns = [i for i in range(divergence.shape[1]) if mask[row, i]]
        if not columns:
            continue
        responses += 1
        length = len(columns)
        token_bound = max(delta / float(weights[row, i]) for i in columns)
        terms = [4 * xi * token_bound * (length - t) * float(divergence[row, i]) for t, i in enumerate(columns, 1)]
        realised.append(math.fsum(terms))
        worst.append(2 * xi * length * (length - 1) * token_bound * delta_b[row])
    return math.fsum(realised) / max(responses, 1), math.fsum(worst) / max(responses, 1), responses


class TestCertificate:
    def test_by_hand_with_a_hole(self):
        """Valid tokens have D = 0.1, 0.2, 0.4 and w = 1, 0.75, 0.5; lbar = 0.25/0.5; the second row is empty."""
        mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
        divergence = torch.tensor([[0.1, 7.0, 0.2, 0.4, torch.nan], [5.0, 5.0, 5.0, 5.0, torch.inf]])
        weights = torch.tensor([[1.0, 0.0, 0.75, 0.5, 0.0], [0.0] * 5])
        result = bound.certificate(divergence, weights, mask, delta=0.25, delta_b=0.1, xi=2.0)
        assert float(result.realised) == pytest.approx(4 * 2 * 0.5 * (2 * 0.1 + 1 * 0.2))
        assert float(result.worst_case) == pytest.approx(2 * 2 * 3 * 2 * 0.5 * 0.1)
        assert float(result.ratio) == pytest.approx(1.6 / 1.2)
        assert float(result.responses) == 1.0
        assert all(x.dtype == torch.float64 and x.dim() == 0 for x in result)

    @settings(max_examples=60)
    @given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 12), st.booleans())
    def test_equals_loops(self, seed: int, batch: int, length: int, double: bool):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand((batch, length), generator=generator) < torch.rand((batch, 1), generator=generator)
        dtype = torch.float64 if double else torch.float32
        divergence = torch.rand((batch, length), generator=generator, dtype=dtype)
        weights = schedule.linear_weights(mask, 0.3, dtype)
        delta_b = torch.rand(batch, generator=generator, dtype=torch.float64) + 0.01
        realised, worst, responses = naive_certificate(divergence, weights, mask, 0.15, delta_b.tolist(), 0.5)
        for shaped in (delta_b, delta_b.unsqueeze(-1)):
            result = bound.certificate(divergence, weights, mask, 0.15, shaped, 0.5)
            assert float(result.realised) == pytest.approx(realised, rel=1e-6)
            assert float(result.worst_case) == pytest.approx(worst, rel=1e-6)
            assert float(result.responses) == responses
            expected = realised / worst if worst else 0.0
            assert float(result.ratio) == pytest.approx(expected, rel=1e-6)

    @settings(max_examples=60)
    @given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0.1, 1.0))
    def test_within_every_prefix_budget_the_ratio_is_at_most_one(self, seed: int, length: int, w_min: float):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.ones((4, length), dtype=torch.bool)
        weights = schedule.linear_weights(mask, w_min, torch.float64)
        wanted = torch.rand((4, length), generator=generator, dtype=torch.float64) * 0.06
        cumulative = (weights * wanted).cumsum(-1)
        allowed = 0.02 * weights.cumsum(-1)
        spent = cumulative.minimum(allowed.flip(-1).cummin(-1).values.flip(-1))
        divergence = torch.cat([spent[:, :1], spent.diff(dim=-1)], dim=-1) / weights
        result = bound.certificate(divergence, weights, mask, 0.15, 0.02)
        assert 0.0 < float(result.ratio) <= 1 + 1e-9

    def test_slack_covers_what_the_implemented_rule_allows(self):
        """A response that takes the initial slack at once exceeds the residual, and stays within Proposition 8."""
        length, delta, delta_b = 200, 0.15, 0.02
        mask = torch.ones((1, length), dtype=torch.bool)
        weights = schedule.linear_weights(mask, 0.8, torch.float64)
        divergence = torch.full((1, length), delta_b, dtype=torch.float64)
        divergence[0, 0] = delta
        result = bound.certificate(divergence, weights, mask, delta, delta_b)
        covered = result.worst_case + bound.slack_term(length, delta, delta / 0.8, 1.0)
        assert float(result.worst_case) < float(result.realised) < float(covered)

    def test_padding_and_holes_change_nothing(self):
        generator = torch.Generator().manual_seed(0)
        divergence = torch.rand((2, 6), generator=generator)
        mask = torch.ones((2, 6), dtype=torch.bool)
        plain = bound.certificate(divergence, schedule.linear_weights(mask, 0.5), mask, 0.15, 0.02)
        columns = torch.tensor([1, 2, 5, 6, 7, 10])
        wide = torch.full((2, 12), torch.nan).index_copy(1, columns, divergence)
        wide_mask = torch.zeros((2, 12), dtype=torch.bool)
        wide_mask[:, columns] = True
        padded = bound.certificate(wide, schedule.linear_weights(wide_mask, 0.5), wide_mask, 0.15, 0.02)
        assert [float(x) for x in padded] == pytest.approx([float(x) for x in plain], rel=1e-12)

    def test_shapes_that_do_not_fit_are_named(self):
        ones = torch.ones((2, 3))
        with pytest.raises(ValueError, match=r"weights.*\(2, 4\)"):
            bound.certificate(ones, torch.ones((2, 4)), ones, 0.15, 0.02)
        with pytest.raises(ValueError, match=r"delta_b=\(3,\)"):
            bound.certificate(ones, ones, ones, 0.15, torch.ones(3))
