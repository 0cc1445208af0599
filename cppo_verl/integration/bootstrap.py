"""verl's bootstrap over the samples of a validation (0.9.0, 0.9.1), by arrays: the same numbers to the last bit.

verl resamples each question's values 1,000 times for each variable and size, and calls a Python function for each
resample. That takes seconds a validation, which a small model answers in less. ``quick`` exchanges that one function
while verl computes the metrics of a validation; what it does not know it leaves to the function it was given.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from verl.trainer.ppo import metric_utils


def bootstrap_metric(
    data: Sequence[Any], subset_size: int, reduce_fns: Sequence[Callable], n_bootstrap: int = 1000, seed: int = 42
) -> list[tuple[float, float]]:
    """Mean and standard deviation of each of ``reduce_fns`` over resamples, as verl's function of this name gives them.

    Args:
        data: the samples of one question: numbers, or verl's ``{"val", "pred"}`` for a majority.
        subset_size: samples drawn for a resample, with replacement.
        reduce_fns: from the samples of a resample to a number.
        n_bootstrap: resamples.
        seed: of numpy's global generator, which is left as verl leaves it.
    """
    np.random.seed(seed)
    drawn = np.random.choice(len(data), size=(n_bootstrap, subset_size), replace=True)
    reduced = [_reduced(reduce_fn, data, drawn) for reduce_fn in reduce_fns]
    return [(float(np.mean(values)), float(np.std(values))) for values in reduced]


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Has verl's ``process_validation_metrics`` use the function above."""
    verls, metric_utils.bootstrap_metric = metric_utils.bootstrap_metric, bootstrap_metric
    try:
        yield
    finally:
        metric_utils.bootstrap_metric = verls


def _reduced(reduce_fn: Callable, data: Sequence[Any], drawn: np.ndarray) -> np.ndarray:
    """(resamples,) float64 of one function; ``drawn`` is (resamples, size) int64."""
    if reduce_fn in (np.max, np.min) and _numbers(data):
        return reduce_fn(np.array(data, dtype=np.float64)[drawn], axis=1)
    if isinstance(reduce_fn, functools.partial) and reduce_fn.func is metric_utils.calc_maj_val:
        vote, value = reduce_fn.keywords["vote_key"], reduce_fn.keywords["val_key"]
        values = [sample[value] for sample in data]
        if _numbers(values):
            return np.array(values, dtype=np.float64)[_majority([sample[vote] for sample in data], drawn)]
    samples = np.array(data, dtype=object)
    return np.array([reduce_fn(samples[row]) for row in drawn], dtype=np.float64)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, bool | int | float | np.number) and np.isfinite(value) for value in values)


def _majority(votes: Sequence[Any], drawn: np.ndarray) -> np.ndarray:
    """(resamples,) int64: the first sample with the commonest vote; of equally common ones, the one that came first."""
    numbers: dict[Any, int] = {}
    picked = np.array([numbers.setdefault(vote, len(numbers)) for vote in votes])[drawn]
    rows = np.arange(len(drawn))
    cells = picked + len(numbers) * rows[:, None]
    counts = np.bincount(cells.ravel(), minlength=len(numbers) * len(drawn))
    return drawn[rows, counts[cells].argmax(axis=1)]
