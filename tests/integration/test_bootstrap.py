"""The bootstrap of a validation by arrays: verl's numbers to the last bit, and its random numbers afterwards."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verl.trainer.ppo import metric_utils
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from cppo_verl.integration import bootstrap
from cppo_verl.integration.trainer import TrustRegionTrainer

VERLS = metric_utils.bootstrap_metric
MAJORITY = functools.partial(metric_utils.calc_maj_val, vote_key="pred", val_key="val")
numbers = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(-1e6, 1e6))
sizes = st.integers(1, 12)


def both(data, size, functions):
    """(what, generator afterwards) of verl's function and of ours."""
    found = []
    for function in (VERLS, bootstrap.bootstrap_metric):
        found.append((function(data, size, functions, n_bootstrap=40, seed=7), np.random.random()))
    return found


@given(st.lists(numbers, min_size=1, max_size=9), sizes)
def test_best_and_worst(values, size):
    theirs, ours = both(values, size, [np.max, np.min])
    assert ours == theirs


@given(st.lists(st.tuples(numbers, st.sampled_from(["1", "2", "", None])), min_size=1, max_size=9), sizes)
def test_the_majority(pairs, size):
    theirs, ours = both([{"val": value, "pred": pred} for value, pred in pairs], size, [MAJORITY])
    assert ours == theirs


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("values", [[0.5, float("inf"), 1.0], [0.5, float("nan")], [np.float32(0.1), 2, True]])
@pytest.mark.parametrize("function", [np.max, np.min, np.median, len])
def test_what_is_no_finite_number_or_another_function_is_left_to_python(values, function):
    theirs, ours = both(values, 2, [function])
    assert str(ours) == str(theirs)  # nan is not equal to itself


def test_the_trainer_logs_verls_numbers_and_leaves_its_function_in_place(monkeypatch):
    rng = np.random.default_rng(0)
    uids = [str(i // 8) for i in range(40)]
    right = rng.random(40) < 0.5
    infos = {"acc": list(map(bool, right)), "score": [2.0 * r - 1 for r in right], "pred": list("abcd" * 10)}
    infos["comment"] = ["said"] * 40
    arguments = (["a"] * 24 + ["b"] * 16, uids, infos, [2] * 40)
    theirs = PPOTrainerSync._val_metrics_update(object.__new__(PPOTrainerSync), *arguments, expected_acc_counts=None)
    assert any("maj@8/std" in name for name in theirs)

    calls, reduced = [], bootstrap._reduced
    monkeypatch.setattr(bootstrap, "_reduced", lambda *each: calls.append(each) or reduced(*each))
    trainer = object.__new__(type("Both", (TrustRegionTrainer, PPOTrainerSync), {}))
    assert trainer._val_metrics_update(*arguments, expected_acc_counts=None) == theirs
    assert len(calls) == 5 * 2 * 3 * 3  # questions, numbers, sizes, functions
    assert metric_utils.bootstrap_metric is VERLS
