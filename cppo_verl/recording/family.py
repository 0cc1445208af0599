"""A rule whose thresholds move with one factor, and how much it masks of recorded tokens at each factor."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from cppo_verl.recording.batches import Batch, taken
from cppo_verl.recording.candidates import CLIPS, Candidate
from cppo_verl.recording.record import RecordError
from cppo_verl.trust_region.rules import RULES

FACTORS = (1e-9, 1e9)  # of the thresholds in hand, the span that is searched


class Family:
    """``base`` at factor 1, ``moving`` the thresholds that are multiplied, ``tokens`` (groups,) the counted ones."""

    def __init__(self, parts: Sequence[Batch], base: Candidate, moving: Sequence[str] = ()):
        self.parts, self.base, self.moving = parts, base, tuple(moving)
        self.tokens = self._by_group([part.counted.double() for part in parts])
        self._known: dict[float, np.ndarray] = {}

    def threshold(self, name: str, factor: float) -> float:
        """One of the moving thresholds times ``factor``; of a TV at most 1."""
        knobs = self.base.knobs
        value = factor * float(self.base.clips[name] if name in CLIPS else getattr(knobs, name))
        return min(value, 1.0) if name in ("delta", "delta_b") and knobs.divergence == "tv" else value

    def masked(self, factor: float = 1.0) -> np.ndarray:
        """(groups,) float64, counted tokens that are masked; a gate between 0 and 1 counts in part (``taken``)."""
        if factor not in self._known:
            candidate = self.base.changed({name: self.threshold(name, factor) for name in self.moving})
            removed = [taken(part.decide(candidate)[0]).masked_fill_(~part.counted, 0.0) for part in self.parts]
            self._known[factor] = self._by_group(removed)
        return self._known[factor]

    def share(self, factor: float = 1.0) -> float:
        """Of the counted tokens."""
        return float(self.masked(factor).sum() / self.tokens.sum())

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

    ``move`` are knobs to multiply instead of ``delta`` and ``delta_b`` (``clip_ratio_low`` and ``_high`` of
    ``vanilla``), for a rule of one's own. RecordError: no threshold decides anything, or none is left to move.
    """

    def decides(name: str) -> bool:
        alone = Family(parts, candidate, [name])
        return bool((alone.masked(FACTORS[0]) != alone.masked(FACTORS[1])).any())

    ours = candidate.rule in RULES
    names = list(filter(decides, move or (("delta", "delta_b") if ours else ("clip_ratio_low", "clip_ratio_high"))))
    if not names:
        raise RecordError(f"{candidate.name} masks none of these tokens at any threshold: nothing to calibrate.")
    if strange := [name for name in hold if name not in names]:
        raise RecordError(f"--hold {strange[0]}: what decides here is {', '.join(names)}.")
    if set(names) <= set(hold):
        raise RecordError(f"--hold {' '.join(hold)} leaves no threshold of {candidate.name} to move.")
    return Family(parts, candidate, [name for name in names if name not in hold])
