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
    """A rule whose thresholds move with one factor: ``base`` at factor 1, ``moving`` the thresholds it multiplies."""

    base: Candidate
    moving: tuple[str, ...]

    def at(self, factor: float) -> Candidate:
        """The rule with its thresholds times ``factor``."""
        return self.base.changed({name: self.threshold(name, factor) for name in self.moving})

    def threshold(self, name: str, factor: float) -> float:
        """One of the moving thresholds times ``factor``; of a TV at most 1."""
        knobs = self.base.knobs
        value = factor * float(self.base.clips[name] if name in CLIPS else getattr(knobs, name))
        return min(value, 1.0) if name in ("delta", "delta_b") and knobs.divergence == "tv" else value


class Masked:
    """Masked tokens of each group by factor; ``tokens`` (groups,) float64 are the counted ones."""

    def __init__(self, parts: Sequence[Batch], family: Family):
        self.parts, self.family = parts, family
        self.tokens = self._by_group([part.counted.double() for part in parts])
        self._known: dict[float, np.ndarray] = {}

    def at(self, factor: float) -> np.ndarray:
        """(groups,) float64, counted tokens that are masked; a gate between 0 and 1 counts in part (``taken``)."""
        if factor not in self._known:
            candidate = self.family.at(factor)
            removed = [taken(part.decide(candidate)[0]).masked_fill_(~part.counted, 0.0) for part in self.parts]
            self._known[factor] = self._by_group(removed)
        return self._known[factor]

    def share(self, factor: float) -> float:
        """Of the counted tokens."""
        return float(self.at(factor).sum() / self.tokens.sum())

    def factor_of(self, wanted: float) -> float:
        """Where the share, which falls with the factor, passes ``wanted``: by halving in the logarithm, to 0.05%."""
        low, high = FACTORS
        while high / low > 1.0005:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.share(middle) > wanted else (low, middle)
        return math.sqrt(low * high)

    def _by_group(self, values: Sequence[torch.Tensor]) -> np.ndarray:
        rows = [group for part in self.parts for group in part.groups]
        sums = torch.cat([one.sum(-1) for one in values]).numpy() if rows else np.zeros(0)
        return np.bincount(np.array(rows, dtype=np.int64), sums)


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

    def decides(name: str) -> bool:
        masked = Masked(parts, Family(candidate, (name,)))
        return bool((masked.at(FACTORS[0]) != masked.at(FACTORS[1])).any())

    names = tuple(filter(decides, move or (("delta", "delta_b") if candidate.rule in RULES else CLIPS[:2])))
    if not names:
        raise RecordError(
            f"{candidate.name} masks none of these tokens at any threshold: there is nothing to calibrate."
        )
    if strange := [name for name in hold if name not in names]:
        raise RecordError(f"--hold {strange[0]}: what decides here is {', '.join(names)}.")
    moving = tuple(name for name in names if name not in hold)
    if not moving:
        raise RecordError(f"--hold {' '.join(hold)} leaves no threshold of {candidate.name} to move.")
    return Family(candidate, moving)
