"""Means with Student's t intervals: over the seeds of a method, or over the differences of paired seeds."""

from collections.abc import Sequence
from math import inf, sqrt
from statistics import NormalDist, fmean, stdev

# The 97.5% quantile of Student's t by degrees of freedom 1 to 30.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t975(freedom: int) -> float:
    """The 97.5% quantile of Student's t to three decimals; ``freedom`` is 1 or more."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = NormalDist().inv_cdf(0.975)  # Abramowitz and Stegun 26.7.5
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval (mean, low, high); infinitely wide for fewer than two values, NaN for none."""
    if len(values) < 2:
        return fmean(values) if values else float("nan"), -inf, inf
    mean, half = fmean(values), t975(len(values) - 1) * stdev(values) / sqrt(len(values))
    return mean, mean - half, mean + half
