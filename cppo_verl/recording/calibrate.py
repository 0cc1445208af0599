"""Thresholds from data: those that mask a wanted share of a run's recorded tokens, or a multiple of the engine gap.

A rule with two thresholds has many pairs that mask the same share. One family of them is searched: both times one
factor, or one held and the other times a factor. Intervals (95%) come from a bootstrap over groups, for responses to
one prompt depend on each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

from cppo_verl.recording.batches import Batch, taken
from cppo_verl.recording.candidates import CLIPS, Candidate
from cppo_verl.recording.record import RecordError
from cppo_verl.trust_region.knobs import KEY_PREFIX, clamped
from cppo_verl.trust_region.rules import RULES, capability, position_weights

FACTORS = (1e-9, 1e9)  # of the thresholds in hand, the span that is searched
RESAMPLES = 1000
TAILS = (0.025, 0.975)
GRID = 33  # factors at which the rule is run for the bootstrap
SPANS = (1.5, 4.0, 30.0, 1e4)  # how far the grid reaches to either side, as far as it takes
FEW_GROUPS, FEW_MASKED, WIDE = 20, 50, 2.0  # from here on an interval says something
GAP_QUANTILE = 0.99


class Family:
    """A rule whose thresholds move with one factor: ``base`` at factor 1, the ``moving`` ones multiplied by it.

    ``tokens`` (groups,) are the counted ones.
    """

    def __init__(self, parts: Sequence[Batch], base: Candidate, moving: Sequence[str]):
        self.parts, self.base, self.moving = parts, base, tuple(moving)
        self.groups = [group for part in parts for group in part.groups]
        self.tokens = self._by_group([part.counted.double() for part in parts])

    def threshold(self, name: str, factor: float) -> float:
        """One of the moving thresholds times ``factor``, within its knob's range."""
        if name in CLIPS:
            return factor * self.base.clips[name]
        knobs = self.base.knobs
        return clamped(knobs, name, factor * getattr(knobs, name))

    def masked(self, factor: float) -> np.ndarray:
        """``masked_by`` the rule at that factor."""
        return self.masked_by(self.base.changed({name: self.threshold(name, factor) for name in self.moving}))

    def masked_by(self, candidate: Candidate) -> np.ndarray:
        """(groups,) float64, counted tokens that are masked; a gate between 0 and 1 counts in part (``taken``)."""
        removed = [torch.where(part.counted, taken(part.decide(candidate)[0]), 0.0) for part in self.parts]
        return self._by_group(removed)

    def share(self, factor: float) -> float:
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
        return np.bincount(self.groups, torch.cat([one.sum(-1) for one in values]).numpy())


def family_of(
    parts: Sequence[Batch], candidate: Candidate, hold: Sequence[str] = (), move: Sequence[str] = ()
) -> Family:
    """The rule with the thresholds that decide anything on these tokens, less those to hold.

    ``move`` are knobs to multiply instead of ``delta`` and ``delta_b`` (``clip_ratio_low`` and ``_high`` of
    ``vanilla``), for a rule of one's own. RecordError: there is no response, one of these is no threshold, none decides
    anything, or none is left to move.
    """
    if not parts:
        raise RecordError("no response was recorded: nothing to calibrate.")
    values = {**candidate.clips, **asdict(candidate.knobs)}
    numbers = [name for name, value in values.items() if type(value) in (int, float)]
    if strange := [name for name in move if name not in numbers]:
        raise RecordError(f"--move {strange[0]}: that is no threshold; there are {', '.join(numbers)}.")

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


@dataclass(frozen=True)
class Interval:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, samples: np.ndarray) -> "Interval":
        """With the ends of the middle 95% of bootstrap samples."""
        return cls(float(value), *map(float, np.quantile(samples, TAILS)))

    def threshold(self, function: Callable[[float], float]) -> "Interval":
        """A function of it, rounded to four significant digits, as overrides are printed."""
        return Interval(*(float(f"{function(x):.4g}") for x in (self.value, self.low, self.high)))

    def holds(self, value: float) -> bool:
        """Whether the interval contains ``value``."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{100 * self.value:.3g}% ({100 * self.low:.3g} to {100 * self.high:.3g}%)"


@dataclass(frozen=True)
class Calibration:
    """Thresholds and what they do.

    Attributes:
        candidate: the rule with the thresholds found, rounded as they are printed.
        thresholds: by knob, with intervals. share: of the counted tokens, what they mask.
        tokens, groups: counted ones. warnings: sentences.
        wanted: the share that was asked for; None for a multiple of the gap.
        held_back: what thresholds found on one half of the groups mask on the other half, with an interval that covers
            the chance in both; None for a multiple of the gap, and for fewer than four groups.
    """

    candidate: Candidate
    thresholds: dict[str, Interval]
    share: Interval
    tokens: int
    groups: int
    warnings: list[str]
    wanted: float | None = None
    held_back: Interval | None = None

    def overrides(self) -> list[str]:
        """For the command line."""
        keys = {name: "actor_rollout_ref.actor" if name in CLIPS else KEY_PREFIX for name in self.thresholds}
        return [f"{keys[name]}.{name}={found.value:g}" for name, found in self.thresholds.items()]

    def told(self, scope: str) -> list[str]:
        """Lines for the console, the overrides last."""
        lines = [f"{self.candidate.rule}, {scope}: {self.tokens:,} counted tokens of {self.groups:,} groups", ""]
        lines += [f"  {name:<16}{x.value:<12g}({x.low:g} to {x.high:g})" for name, x in self.thresholds.items()]
        lines.append(f"  masked          {self.share}")
        if self.wanted is not None and self.held_back is not None:
            verdict = "holds" if self.held_back.holds(self.wanted) else "does NOT hold"
            lines.append(f"  held back       {self.held_back}, which {verdict} the {100 * self.wanted:.3g}% asked")
            lines.append("                  (thresholds from one half of the groups, share on the other half)")
        return [*lines, "", " ".join(self.overrides())]


def for_share(family: Family, wanted: float, seed: int = 0) -> Calibration:
    """Thresholds that mask ``wanted``, in (0, 1), of the recorded tokens. RecordError: no factor masks that share."""
    most, least = map(family.share, FACTORS)
    if not least < wanted < most:
        what = f"no {' and '.join(family.moving)} of {family.base.rule} masks {wanted:.3g} of these tokens"
        never = "Tokens that move back toward the rollout policy are never masked."
        raise RecordError(f"{what}: the share is between {least:.3g} and {most:.3g}. {never}")
    solution = family.factor_of(wanted)
    curves = Curves(family, solution, wanted, seed)
    factor = Interval.of(solution, curves.factors(curves.weights, wanted))
    thresholds = {name: factor.threshold(partial(family.threshold, name)) for name in family.moving}
    found = _calibration(family, thresholds, seed, wanted=wanted, held_back=curves.held_back(wanted, seed))
    expected, wide, near = found.tokens * wanted, factor.high / factor.low, found.share.value
    if found.groups < FEW_GROUPS or expected < FEW_MASKED or wide > WIDE:
        said = f"{found.groups} groups, {expected:.0f} masked tokens, thresholds known to a factor of {wide:.2g}"
        found.warnings.append(f"the record is too small for this share: {said}. Record more responses, or more steps.")
    if abs(near - wanted) > 0.1 * wanted:
        said = f"{near:.3g} is the nearest to {wanted:.3g} that a threshold gives, as where whole responses are masked"
        found.warnings.append(f"the share jumps here: {said}.")
    return found


def _calibration(family: Family, thresholds: dict[str, Interval], seed: int, **more) -> Calibration:
    chosen = family.base.changed({name: found.value for name, found in thresholds.items()})
    masked, weights = family.masked_by(chosen), resamples(family.tokens, seed)
    share = Interval.of(masked.sum() / family.tokens.sum(), weights @ masked / np.maximum(weights @ family.tokens, 1))
    groups = int((family.tokens > 0).sum())
    return Calibration(chosen, thresholds, share, int(family.tokens.sum()), groups, [], **more)


class Curves:
    """Masked share by factor for any weighting of the groups, from a grid of factors around a solution, as wide as what
    the bootstrap finds. ``weights`` (RESAMPLES, groups): how often each of its samples holds a group."""

    def __init__(self, family: Family, solution: float, wanted: float, seed: int):
        self.tokens, self.weights = family.tokens, resamples(family.tokens, seed)
        for span in SPANS:
            grid = solution * np.geomspace(1 / span, span, GRID)
            self.log_factors, self.counts = np.log(grid), np.stack([family.masked(factor) for factor in grid])
            shares = self.shares(self.weights)
            if ((shares[:, 0] > wanted) & (wanted >= shares[:, -1])).mean() > TAILS[1]:
                break

    def shares(self, weights: np.ndarray) -> np.ndarray:
        """(samples, GRID) for weights (samples, groups)."""
        return (weights @ self.counts.T) / np.maximum(weights @ self.tokens, 1)[:, None]

    def factors(self, weights: np.ndarray, wanted: float) -> np.ndarray:
        """(samples,) where the share passes ``wanted``, at the grid's end where it does not."""
        falling = np.maximum.accumulate(self.shares(weights)[:, ::-1], axis=1)[:, ::-1]
        return np.exp([np.interp(-wanted, -row, self.log_factors) for row in falling])

    def held_back(self, wanted: float, seed: int) -> Interval | None:
        """Factor from one half of the groups, share on the other half."""
        groups = np.flatnonzero(self.tokens)
        if len(groups) < 4:
            return None
        half = np.zeros(len(self.tokens))
        half[np.random.default_rng(seed).permutation(groups)[: len(groups) // 2]] = 1

        def share(known: np.ndarray, held: np.ndarray) -> np.ndarray:
            rows = zip(np.log(self.factors(known, wanted)), self.shares(held), strict=True)
            return np.array([np.interp(x, self.log_factors, row) for x, row in rows])

        samples = share(*(resamples(self.tokens * part, seed + n) for n, part in enumerate((half, 1 - half), 1)))
        return Interval.of(share(half[None], (1 - half)[None])[0], samples)


def above_gap(family: Family, multiple: float, seed: int = 0) -> Calibration:
    """Thresholds as a multiple of the engine gap, the divergence that a step's first update finds before any change.

    ``delta`` is so many times its 99th percentile, what a single token can show; ``delta_b`` so many times its mean,
    what a prefix collects a token (both of w_t D_t where the rule has weights). A rule that compares the mean of a
    response (TRM-Avg) gets a multiple of the mean.
    RecordError: no response was recorded at the first update of a step, the rule compares no D_t, or a threshold is out
    of range.
    """
    rule = family.base.rule
    if any(name in CLIPS for name in family.moving):
        raise RecordError(f"{rule} compares ratios, not a divergence: use --masked-share.")
    mean, peak, seen = engine_gap(family.parts, family.base, seed)
    gaps = {name: mean if name == "delta_b" or rule == "trm_avg" else peak for name in family.moving}
    thresholds = {name: gap.threshold(lambda x: multiple * x) for name, gap in gaps.items()}
    found = _calibration(family, thresholds, seed)
    if seen < FEW_GROUPS:
        found.warnings.append(f"only {seen} groups were recorded at a first update: the gap is not known well.")
    return found


def engine_gap(parts: Sequence[Batch], candidate: Candidate, seed: int) -> tuple[Interval, Interval, int]:
    """Mean and 99th percentile of w_t D_t over the tokens that a step's first update saw, and of how many groups."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for part in parts:
        first = torch.tensor([look.update == 0 for look in part.looks]).unsqueeze(-1)
        gaps, counted = part.divergence(candidate), part.counted & first
        if capability(candidate.rule).prefix_budget:
            gaps = gaps * position_weights(part.tokens, candidate.knobs)
        rows = torch.tensor(part.groups).unsqueeze(-1).expand_as(counted)
        pairs.append((gaps[counted].double().numpy(), rows[counted].numpy()))
    values, groups = map(np.concatenate, zip(*pairs, strict=True))
    if not len(values):
        said = "no recorded response was seen by the first update of a step, so the engine gap is not known"
        raise RecordError(f"{said}: record more responses a step (trainer.v1.trust_region.record).")
    order = np.argsort(values, kind="stable")
    values, (present, groups) = values[order], np.unique(groups[order], return_inverse=True)
    sums, counts = np.bincount(groups, values), np.bincount(groups).astype(float)
    weights = resamples(counts, seed)

    def peak(of_groups: np.ndarray) -> float:
        total = of_groups[groups].cumsum()
        return float(values[min(int(np.searchsorted(total, GAP_QUANTILE * total[-1])), len(values) - 1)])

    peaks = np.array([peak(row) for row in weights[:: RESAMPLES // 200]])
    mean = Interval.of(values.mean(), weights @ sums / np.maximum(weights @ counts, 1))
    return mean, Interval.of(peak(np.ones(len(present))), peaks), len(present)


def resamples(tokens: np.ndarray, seed: int) -> np.ndarray:
    """(RESAMPLES, groups): how often each group is drawn, as many draws as groups that have tokens."""
    has = tokens > 0
    return np.random.default_rng(seed).multinomial(has.sum(), has / has.sum(), RESAMPLES).astype(float)
