"""Thresholds from data: those that mask a wanted share of a run's recorded tokens, or a multiple of the engine gap.

A rule with two thresholds has many pairs that mask the same share. One family of them is searched: both times one
factor, or one held and the other times a factor. Intervals (95%) come from a bootstrap over groups, for responses to
one prompt depend on each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cppo_verl.recording.batches import Batch
from cppo_verl.recording.candidates import CLIPS, Candidate
from cppo_verl.recording.masked import FACTORS, Family, Masked
from cppo_verl.recording.record import RecordError
from cppo_verl.trust_region.knobs import KEY_PREFIX
from cppo_verl.trust_region.rules import capability, position_weights

RESAMPLES = 1000
LEVEL = 0.95
GRID = 33  # factors at which the rule is run for the bootstrap
SPANS = (1.5, 4.0, 30.0, 1e4)  # how far the grid reaches to either side, as far as it takes
FEW_GROUPS, FEW_MASKED, WIDE = 20, 50, 2.0  # from here on an interval says something
GAP_QUANTILE = 0.99
LARGE_SHARE = 0.2


@dataclass(frozen=True)
class Interval:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, samples: np.ndarray) -> "Interval":
        """With the ends of the middle ``LEVEL`` of bootstrap samples."""
        return cls(float(value), *map(float, np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])))

    def holds(self, value: float) -> bool:
        """Whether the interval contains ``value``."""
        return self.low <= value <= self.high


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
    warnings: tuple[str, ...] = ()
    wanted: float | None = None
    held_back: Interval | None = None

    def overrides(self) -> list[str]:
        """For the command line."""
        keys = {name: "actor_rollout_ref.actor" if name in CLIPS else KEY_PREFIX for name in self.thresholds}
        return [f"{keys[name]}.{name}={found.value:g}" for name, found in self.thresholds.items()]


def for_share(parts: Sequence[Batch], family: Family, wanted: float, seed: int = 0) -> Calibration:
    """The thresholds of a family that mask ``wanted``, in (0, 1), of the recorded tokens.

    Raises:
        RecordError: no factor masks that share.
    """
    masked = Masked(parts, family)
    most, least = map(masked.share, FACTORS)
    if not least < wanted < most:
        raise RecordError(
            f"no {' and '.join(family.moving)} of {family.base.rule} masks {wanted:.3g} of these tokens: the share is "
            f"between {least:.3g} and {most:.3g}. Tokens that move back toward the rollout policy are never masked."
        )
    curves = Curves.around(masked, masked.factor_of(wanted), wanted, seed)
    factor = Interval.of(masked.factor_of(wanted), curves.factors(curves.weights, wanted))
    thresholds = {name: _threshold(factor, lambda x, name=name: family.threshold(name, x)) for name in family.moving}
    chosen = family.base.changed({name: found.value for name, found in thresholds.items()})
    share, groups = share_of(parts, chosen, seed), int((masked.tokens > 0).sum())
    warnings = tuple(_cautions(wanted, share, groups, masked.tokens.sum() * wanted, factor))
    held_back = curves.held_back(wanted, seed)
    return Calibration(chosen, thresholds, share, int(masked.tokens.sum()), groups, warnings, wanted, held_back)


def _threshold(factor: Interval, value) -> Interval:
    """Rounded to four significant digits, as the overrides are printed."""
    return Interval(*(float(f"{value(x):.4g}") for x in (factor.value, factor.low, factor.high)))


def _cautions(wanted: float, share: Interval, groups: int, expected: float, factor: Interval) -> Iterator[str]:
    wide = factor.high / factor.low
    if groups < FEW_GROUPS or expected < FEW_MASKED or wide > WIDE:
        yield (
            f"the record is too small for this share: {groups} groups, {expected:.0f} masked tokens, thresholds known "
            f"to a factor of {wide:.2g}. Record more responses (trainer.v1.trust_region.record) or more steps."
        )
    if abs(share.value - wanted) > 0.1 * wanted:
        yield (
            f"the share jumps here: {share.value:.3g} is the nearest to {wanted:.3g} that a threshold gives, as where "
            "whole responses are masked."
        )


class Curves:
    """Masked share by factor for any weighting of the groups, from a grid of factors around a solution.

    Attributes:
        weights: (RESAMPLES, groups), how often each bootstrap sample holds a group.
    """

    def __init__(self, masked: Masked, grid: np.ndarray, seed: int):
        self.log_factors, self.tokens = np.log(grid), masked.tokens
        self.counts = np.stack([masked.at(factor) for factor in grid])  # (GRID, groups)
        self.weights = resamples(self.tokens, seed)

    @classmethod
    def around(cls, masked: Masked, factor: float, wanted: float, seed: int) -> "Curves":
        """A grid that holds what the bootstrap finds."""
        for span in SPANS:
            curves = cls(masked, factor * np.geomspace(1 / span, span, GRID), seed)
            shares = curves.shares(curves.weights)
            if ((shares[:, 0] > wanted) & (wanted >= shares[:, -1])).mean() > LEVEL + (1 - LEVEL) / 2:
                break
        return curves

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
        known, held = (resamples(self.tokens * part, seed + n) for n, part in enumerate((half, 1 - half), 1))
        (value,) = self._share_at(self.factors(half[None], wanted), (1 - half)[None])
        return Interval.of(value, self._share_at(self.factors(known, wanted), held))

    def _share_at(self, factors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        rows = zip(np.log(factors), self.shares(weights), strict=True)
        return np.array([np.interp(x, self.log_factors, row) for x, row in rows])


def above_gap(parts: Sequence[Batch], family: Family, multiple: float, seed: int = 0) -> Calibration:
    """Thresholds as a multiple of the engine gap, the divergence that a step's first update finds before any change.

    ``delta`` is so many times its 99th percentile, what a single token can show; ``delta_b`` so many times its mean,
    what a prefix collects a token (both of w_t D_t where the rule has weights). A rule that compares the mean of a
    response (TRM-Avg) gets a multiple of the mean.

    Raises:
        RecordError: no response was recorded at the first update of a step, the gap is 0, or the rule compares no D_t.
    """
    if any(name in CLIPS for name in family.moving):
        raise RecordError(f"{family.base.rule} compares ratios, not a divergence: use --masked-share.")
    mean, peak, seen = engine_gap(parts, family.base, seed)
    thresholds = {}
    for name in family.moving:
        gap = mean if name == "delta_b" or family.base.rule == "trm_avg" else peak
        thresholds[name] = _threshold(gap, lambda x: multiple * x)
        if thresholds[name].value <= 0:
            raise RecordError(f"the engine gap is 0, and so is every multiple of it: no {name} follows from it.")
    try:
        chosen = family.base.changed({name: found.value for name, found in thresholds.items()})
    except RecordError as error:
        raise RecordError(f"{multiple:g} times the engine gap gives no threshold: {error}") from error
    share, warnings = share_of(parts, chosen, seed), []
    if seen < FEW_GROUPS:
        warnings.append(f"only {seen} groups were recorded at a first update: the gap is not known well.")
    if share.value > LARGE_SHARE:
        warnings.append(
            f"these thresholds mask {share.value:.3g} of the recorded tokens: the gap is far below what the updates "
            "move, so it gives no useful threshold here."
        )
    tokens = Masked(parts, family).tokens
    return Calibration(chosen, thresholds, share, int(tokens.sum()), int((tokens > 0).sum()), tuple(warnings))


def engine_gap(parts: Sequence[Batch], candidate: Candidate, seed: int) -> tuple[Interval, Interval, int]:
    """Mean and 99th percentile of w_t D_t over the tokens that a step's first update saw, and of how many groups.

    Raises:
        RecordError: there are none.
    """
    found = [_gaps(part, candidate) for part in parts]
    values, groups = (np.concatenate(column) for column in zip(*found, strict=True))
    if not len(values):
        raise RecordError(
            "no recorded response was seen by the first update of a step, so the engine gap is not known: record "
            "more responses a step (trainer.v1.trust_region.record)."
        )
    order = np.argsort(values, kind="stable")
    values, (present, groups) = values[order], np.unique(groups[order], return_inverse=True)
    sums, counts = np.bincount(groups, values), np.bincount(groups).astype(float)
    weights = resamples(counts, seed)
    means = weights @ sums / np.maximum(weights @ counts, 1)
    peaks = np.array([_quantile(values, row[groups]) for row in weights[:: RESAMPLES // 200]])
    peak = Interval.of(_quantile(values, np.ones(len(values))), peaks)
    return Interval.of(values.mean(), means), peak, len(present)


def _gaps(part: Batch, candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """w_t D_t of every token that a first update saw, and the token's group."""
    first = torch.tensor([look.update == 0 for look in part.looks]).unsqueeze(-1)
    values = part.divergence(candidate)
    if capability(candidate.rule).prefix_budget:
        values = values * position_weights(part.tokens, candidate.knobs)
    counted = part.counted & first
    groups = torch.tensor(part.groups).unsqueeze(-1).expand_as(counted)
    return values[counted].double().numpy(), groups[counted].numpy()


def _quantile(values: np.ndarray, weights: np.ndarray) -> float:
    """``GAP_QUANTILE`` of ascending values, each counted ``weights`` times."""
    total = weights.cumsum()
    return float(values[min(int(np.searchsorted(total, GAP_QUANTILE * total[-1])), len(values) - 1)])


def share_of(parts: Sequence[Batch], candidate: Candidate, seed: int) -> Interval:
    """Share that a candidate masks, with the spread over resampled groups."""
    masked = Masked(parts, Family(candidate, ()))
    weights = resamples(masked.tokens, seed)
    return Interval.of(masked.share(1.0), weights @ masked.at(1.0) / np.maximum(weights @ masked.tokens, 1))


def resamples(tokens: np.ndarray, seed: int) -> np.ndarray:
    """(RESAMPLES, groups): how often each group is drawn, as many draws as groups that have tokens."""
    has = (tokens > 0).astype(float)
    draws = int(has.sum())
    chances = has / draws if draws else np.ones(len(has)) / len(has)
    return np.random.default_rng(seed).multinomial(draws, chances, RESAMPLES).astype(float)


def told(found: Calibration, scope: str) -> list[str]:
    """Lines for the console, the overrides last."""

    def percents(interval: Interval) -> str:
        return f"{100 * interval.value:.3g}% ({100 * interval.low:.3g} to {100 * interval.high:.3g}%)"

    lines = [f"{found.candidate.rule}, {scope}: {found.tokens:,} counted tokens of {found.groups:,} groups", ""]
    lines += [f"  {name:<16}{x.value:<12g}({x.low:g} to {x.high:g})" for name, x in found.thresholds.items()]
    lines.append(f"  masked          {percents(found.share)}")
    if found.wanted is not None and found.held_back is not None:
        verdict = "holds" if found.held_back.holds(found.wanted) else "does NOT hold"
        asked = f"{100 * found.wanted:.3g}% asked"
        lines.append(f"  held back       {percents(found.held_back)}, which {verdict} the {asked}")
        lines.append("                  (thresholds from one half of the groups, share on the other half)")
    return [*lines, "", " ".join(found.overrides())]
