"""Means with standard errors and intervals: of seeds, of samples clustered by problem, and of several benchmarks.

For one benchmark with G problems, problem g having samples x_gs (s = 1..k_g), N = sum of k_g and m = their mean:

    standard error  = sqrt( G / (G - 1) * sum_g (sum_s (x_gs - m))^2 ) / N
    sampling error  = sqrt( sum_g k_g * v_g ) / N,   v_g = sum_s (x_gs - m_g)^2 / (k_g - 1)

With equal k_g the first is the standard error of the mean of the problems' means m_g. It says how far another draw of
problems *and* samples would lie; the second keeps the problems. The unweighted mean over B benchmarks has
sqrt(sum of squared errors) / B, the benchmarks being independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev, variance

# The 97.5% quantile of Student's t by degrees of freedom 1 to 30.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean; its errors are None where they are not defined (one problem, one sample a problem)."""

    mean: float
    standard_error: float | None
    sampling_error: float | None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values: their standard deviation (n - 1) over the root of n; None for fewer than 2."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def t975(freedom: int) -> float:
    """The 97.5% quantile of Student's t to three decimals; ``freedom`` is 1 or more."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = NormalDist().inv_cdf(0.975)  # Abramowitz and Stegun 26.7.5
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t: (mean, low, high); infinitely wide for one value, NaN for none."""
    if len(values) < 2:
        return fmean(values) if values else math.nan, -math.inf, math.inf
    mean, half = fmean(values), t975(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def clustered(problems: Sequence[Sequence[float]]) -> Estimate:
    """Estimate over the samples (accuracy 0..1, or any reward) of each problem.

    Raises:
        ValueError: no problem, or a problem without samples.
    """
    if not problems or not all(len(values) for values in problems):
        raise ValueError("an estimate needs at least one problem, and a sample for each")
    groups, total = len(problems), sum(map(len, problems))
    mean = math.fsum(x for values in problems for x in values) / total
    residuals = math.fsum(math.fsum(x - mean for x in values) ** 2 for values in problems)
    standard_error = math.sqrt(groups / (groups - 1) * residuals) / total if groups > 1 else None
    sampling_error = None
    if all(len(values) > 1 for values in problems):
        sampling_error = math.sqrt(math.fsum(len(values) * variance(values) for values in problems)) / total
    return Estimate(mean, standard_error, sampling_error)


def unweighted_mean(benchmarks: Sequence[Estimate]) -> Estimate:
    """The mean over benchmarks, each counting once whatever its number of problems."""
    return Estimate(
        fmean(each.mean for each in benchmarks),
        _combine([each.standard_error for each in benchmarks]),
        _combine([each.sampling_error for each in benchmarks]),
    )


def _combine(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(errors) if len(known) == len(errors) else None
