"""Means with standard errors: of independent values, of samples clustered by problem, and of several benchmarks.

For one benchmark with G problems, problem g having samples x_gs (s = 1..k_g), N = sum of k_g and m = their mean:

    standard error  = sqrt( G / (G - 1) * sum_g (sum_s (x_gs - m))^2 ) / N
    sampling error  = sqrt( sum_g k_g * v_g ) / N,   v_g = sum_s (x_gs - m_g)^2 / (k_g - 1)

With equal k_g the first is sqrt( sum_g (m_g - m)^2 / (G (G - 1)) ): the standard error of the mean of the problems'
means m_g. It says how far another draw of problems *and* samples would lie; the second keeps the problems and says
how far another evaluation of the same model on the same problems would lie.

The unweighted mean over B benchmarks has sqrt(sum of squared errors) / B, the benchmarks being independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean; its errors are None where they are not defined (one problem, one sample a problem)."""

    mean: float
    standard_error: float | None
    sampling_error: float | None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values: their standard deviation (n - 1) over the root of n; None for fewer than 2."""
    return math.sqrt(_variance(values) / len(values)) if len(values) > 1 else None


def clustered(problems: Sequence[Sequence[float]]) -> Estimate:
    """Estimate over the samples of each problem.

    Args:
        problems: one sequence of sample values (accuracy 0..1, or any reward) a problem, each of at least one value.

    Raises:
        ValueError: no problem, or a problem without samples.
    """
    if not problems or not all(len(values) for values in problems):
        raise ValueError("an estimate needs at least one problem, and a sample for each")
    groups, total = len(problems), sum(len(values) for values in problems)
    mean = math.fsum(x for values in problems for x in values) / total
    residuals = math.fsum(math.fsum(x - mean for x in values) ** 2 for values in problems)
    standard_error = math.sqrt(groups / (groups - 1) * residuals) / total if groups > 1 else None
    sampling_error = None
    if all(len(values) > 1 for values in problems):
        sampling_error = math.sqrt(math.fsum(len(values) * _variance(values) for values in problems)) / total
    return Estimate(mean, standard_error, sampling_error)


def unweighted_mean(benchmarks: Sequence[Estimate]) -> Estimate:
    """The mean over benchmarks, each counting once whatever its number of problems."""
    count = len(benchmarks)
    return Estimate(
        math.fsum(b.mean for b in benchmarks) / count,
        _combine([b.standard_error for b in benchmarks]),
        _combine([b.sampling_error for b in benchmarks]),
    )


def _combine(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return math.sqrt(math.fsum(error**2 for error in known)) / len(errors) if len(known) == len(errors) else None


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
