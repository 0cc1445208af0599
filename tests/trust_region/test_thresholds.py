"""The scale that steers the masked share, worked out by hand."""

import math
from dataclasses import dataclass

import pytest

from cppo_verl.trust_region.knobs import KnobError, TrustRegionKnobs, knob
from cppo_verl.trust_region.thresholds import HIGHEST, LOWEST, next_scale, scaled


def test_a_step_by_hand():
    assert next_scale(1.0, 0.08, 0.08) == 1.0
    assert next_scale(1.0, 0.12, 0.08) == pytest.approx(math.exp(0.3 * 0.5))  # half too much: wider
    assert next_scale(2.0, 0.0, 0.08) == pytest.approx(2 * math.exp(-0.3))  # nothing masked: tighter
    assert next_scale(1.0, 0.9, 0.08) == pytest.approx(math.exp(0.7))  # one step at most doubles it
    assert next_scale(HIGHEST, 1.0, 0.08) == HIGHEST and next_scale(LOWEST, 0.0, 0.5) == LOWEST


@pytest.mark.parametrize("scale", [1 / 40, 1.0, 30.0])
def test_it_finds_the_target_where_the_share_falls_with_the_scale(scale):
    for _ in range(200):
        scale = next_scale(scale, 0.2 / (1 + scale), 0.08)
    assert 0.2 / (1 + scale) == pytest.approx(0.08, rel=1e-3)


def test_both_thresholds_move_and_a_tv_stays_one():
    knobs = TrustRegionKnobs(delta=0.15, delta_b=0.02)
    assert scaled(knobs, 1.0) is knobs
    assert scaled(knobs, 2.0) == TrustRegionKnobs(delta=0.3, delta_b=0.04)
    assert scaled(knobs, 64.0) == TrustRegionKnobs(delta=1.0, delta_b=1.0)
    assert scaled(TrustRegionKnobs(divergence="kl", delta=0.1), 64.0).delta == pytest.approx(6.4)


def test_the_range_that_a_rule_from_outside_declares_holds_for_either_divergence():
    @dataclass
    class Own(TrustRegionKnobs):
        delta: float = knob(0.1, above=0, high=0.5)

    for divergence in ("tv", "kl"):
        assert scaled(Own(divergence=divergence), 64.0).delta == 0.5
        with pytest.raises(KnobError, match="delta=0.7"):
            Own(divergence=divergence, delta=0.7)
