"""How much a family of thresholds masks of the recorded tokens: the rule itself, run at each factor asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cppo_verl.recording.batches import Batch, taken
from cppo_verl.recording.candidates import CLIPS, Candidate
from cppo_verl.recording.record import RecordError
from cppo_verl.trust_region.rules import RULES

FACTORS = (1e-9, 1e9)  # of the thresholds in hand, the span that is searched


@dataclass(frozen=True)
class Family:
    """A rule whose thresholds move with one factor.

    Attributes:
        base: the rule at factor 1. moving: the thresholds that are multiplied.
    """

    base: Candidate
    moving: tuple[str, ...]

    def at(self, factor: float) -> Candidate:
        """The rule with its thresholds times ``factor``; those of a TV stay at most 1."""
        return self.base.changed({name: self.threshold(name, factor) for name in self.moving})

    def threshold(self, name: str, factor: float) -> float:
        """One of the moving thresholds times ``factor``."""
        knobs = self.base.knobs
        value = factor * float(self.base.clips[name] if name in CLIPS else getattr(knobs, name))
        return min(value, 1.0) if name in ("delta", "delta_b") and knobs.divergence == "tv" else value


class Masked:
    """Masked tokens of each group by factor.

    Attributes:
        tokens: (groups,) float64, counted tokens.
    """

    def __init__(self, parts: Sequence[Batch], family: Family):
        self.parts, self.family = parts, family
        self.groups = 1 + max((group for part in parts for group in part.groups), default=-1)
        self.tokens = self._by_group([part.counted.double().sum(-1) for part in parts])
        self._known: dict[float, np.ndarray] = {}

    def at(self, factor: float) -> np.ndarray:
        """(groups,) float64, counted tokens that are masked; a gate between 0 and 1 counts in part (``taken``)."""
        if factor not in self._known:
            candidate = self.family.at(factor)
            removed = [taken(p.decide(candidate)[0]).masked_fill_(~p.counted, 0.0).sum(-1) for p in self.parts]
            self._known[factor] = self._by_group(removed)
        return self._known[factor]

    def share(self, factor: float, weights: np.ndarray | None = None) -> float:
        """Of the counted tokens; groups count as often as ``weights`` (groups,) says, once without."""
        weights = np.ones(self.groups) if weights is None else weights
        return float(self.at(factor) @ weights / (self.tokens @ weights))

    def factor_of(self, wanted: float, weights: np.ndarray | None = None) -> float:
        """Where the share, which falls with the factor, passes ``wanted``: by halving in the logarithm, to 0.05%."""
        low, high = FACTORS
        while high / low > 1.0005:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.share(middle, weights) > wanted else (low, middle)
        return math.sqrt(low * high)

    def _by_group(self, rows: Sequence[torch.Tensor]) -> np.ndarray:
        total = torch.zeros(self.groups, dtype=torch.float64)
        for part, values in zip(self.parts, rows, strict=True):
            total.index_add_(0, torch.tensor(part.groups), values)
        return total.numpy()


def family_of(
    parts: Sequence[Batch], candidate: Candidate, hold: Sequence[str] = (), move: Sequence[str] = ()
) -> Family:
    """The rule with the thresholds that decide anything on these tokens, less those to hold.

    Args:
        move: knobs to multiply instead of ``delta`` and ``delta_b`` (``clip_ratio_low`` and ``_high`` of ``vanilla``),
            for a rule of one's own.

    Raises:
        RecordError: no threshold decides anything, or none is left to move.
    """
    names = tuple(move) or (("delta", "delta_b") if candidate.rule in RULES else CLIPS[:2])
    names = tuple(name for name in names if _decides(parts, Family(candidate, (name,))))
    if not names:
        raise RecordError(
            f"{candidate.name} masks none of these tokens at any threshold: there is nothing to calibrate."
        )
    strange = [name for name in hold if name not in names]
    if strange:
        raise RecordError(f"--hold {strange[0]}: what decides here is {', '.join(names)}.")
    moving = tuple(name for name in names if name not in hold)
    if not moving:
        raise RecordError(f"--hold {' '.join(hold)} leaves no threshold of {candidate.name} to move.")
    return Family(candidate, moving)


def _decides(parts: Sequence[Batch], family: Family) -> bool:
    masked = Masked(parts, family)
    strictest, loosest = (masked.at(factor) for factor in FACTORS)
    return not np.array_equal(strictest, loosest)
