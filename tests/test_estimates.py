"""Means, standard errors and intervals, by hand."""

import math

import numpy as np
import pytest

from cppo_verl import estimates


def test_worked_example():
    # problems' means 1, 1/2, 0; squared distances from 1/2: 1/4, 0, 1/4; divided by G(G-1) = 6
    found = estimates.clustered([[1, 1], [1, 0], [0, 0]])
    assert found.mean == 0.5
    assert found.standard_error == pytest.approx(math.sqrt(0.5 / 6))
    # only the second problem varies: v = 1/2, k v = 1, N = 6
    assert found.sampling_error == pytest.approx(1 / 6)
    # a repeated problem is one cluster: N = 5, m = 0.6; residual sums 2 - 4 m = -0.4 and 1 - m = 0.4
    found = estimates.clustered([[1, 1, 0, 0], [1]])
    assert found.standard_error == pytest.approx(0.16)  # sqrt(2 * 0.32) / 5
    assert found.sampling_error is None
    found = estimates.clustered([[1, 0, 1, 0]])  # one problem alone
    assert found.standard_error is None
    assert found.sampling_error == pytest.approx(math.sqrt(1 / 3 / 4))


def test_unweighted_mean():
    found = estimates.unweighted_mean([estimates.Estimate(0.2, 0.3, 0.06), estimates.Estimate(0.6, 0.4, 0.08)])
    assert (found.mean, found.standard_error) == (pytest.approx(0.4), pytest.approx(0.25))
    assert found.sampling_error == pytest.approx(0.05)
    assert estimates.unweighted_mean([found, estimates.Estimate(1, None, None)]).standard_error is None


@pytest.mark.parametrize("empty", [[], [[1.0], []]])
def test_nothing_to_estimate(empty):
    with pytest.raises(ValueError, match="at least one problem"):
        estimates.clustered(empty)
    assert estimates.standard_error([1.0]) is estimates.standard_error([]) is None


@pytest.mark.parametrize("freedom", [1, 30, 31, 1000])
def test_the_t_quantile_holds_97_5_percent(freedom):
    # Student's density integrated from 0 with x = sqrt(freedom) tan(u): cos(u) to the power of freedom - 1
    u = np.linspace(0, math.atan(estimates.t975(freedom) / math.sqrt(freedom)), 200_001)
    whole = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    assert 0.5 + whole * np.trapezoid(np.cos(u) ** (freedom - 1), u) == pytest.approx(0.975, abs=3e-5)


def test_interval_of_none_one_and_three():
    assert math.isnan(estimates.interval([])[0]) and estimates.interval([2.0]) == (2.0, -math.inf, math.inf)
    half = 4.303 / math.sqrt(3)  # standard deviation 1
    assert estimates.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half))
