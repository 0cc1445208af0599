"""Thresholds that set themselves: one scale on delta and delta_b, steered to a share of masked tokens.

An older, a longer response, or one of a rougher engine, stands further from the trained policy before any update, so
thresholds found for one setting mask nearly all or nothing in another. Ours, not of arXiv 2606.10968.
"""

import dataclasses
import math
from typing import TypeVar

from cppo_verl.trust_region.knobs import TrustRegionKnobs, clamped

RATE = 0.3  # of the relative error that one step corrects, in the logarithm
STEP = 0.7  # most that one step moves the logarithm: a factor of 2
LOWEST, HIGHEST = 1 / 64, 64.0
Knobs = TypeVar("Knobs", bound=TrustRegionKnobs)


def next_scale(scale: float, masked_share: float, target: float) -> float:
    """The scale for the next step: log scale += clip(RATE (share - target) / target, -STEP, STEP), then bounded.

    ``masked_share`` in [0, 1] is the step's, of a step with a token that could be masked; ``target`` the knob
    ``budget_target``, in (0, 1).
    """
    error = (masked_share - target) / target
    return min(max(scale * math.exp(min(max(RATE * error, -STEP), STEP)), LOWEST), HIGHEST)


def scaled(knobs: Knobs, scale: float) -> Knobs:
    """``knobs`` with delta and delta_b times ``scale``, within their ranges; the same object for a scale of 1."""
    if scale == 1.0:
        return knobs
    delta, delta_b = (clamped(knobs, name, scale * getattr(knobs, name)) for name in ("delta", "delta_b"))
    return dataclasses.replace(knobs, delta=delta, delta_b=delta_b)
