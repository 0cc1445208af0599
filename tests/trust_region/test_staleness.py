"""Sums by staleness and effective sample sizes, against a loop and by hand."""

import math

import pytest
import torch

from cppo_verl.trust_region import metrics, staleness
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate
from tests.helpers import batch_of, random_batch


def summary_of(batch, behind, rollout=None, **knobs):
    tokens = batch.tokens()
    verdict, divergence = evaluate("cppo", tokens, TrustRegionKnobs(**knobs))
    rollout = batch.old_log_prob if rollout is None else rollout
    return staleness.summarise(tokens, divergence, verdict, torch.tensor(behind), rollout), verdict, divergence


def test_by_staleness_by_hand():
    """Two responses of two tokens, 0 and 9 versions behind, D_t 0, 0.2 and 0.1, 0.3; one without an advantage."""
    mu = [[math.log(0.5), math.log(0.5)]] * 3
    pi = [[math.log(0.5), math.log(0.7)], [math.log(0.6), math.log(0.8)], [math.log(0.9), math.log(0.9)]]
    batch = batch_of(pi, mu, [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], [[1, 1]] * 3)
    found, verdict, _ = summary_of(batch, [0, 9, 9], delta=0.15, budget="none", weights="constant")
    assert verdict.gate[:2].tolist() == [[True, False], [True, False]]
    assert found.sums["divergence_by_staleness/0"] == pytest.approx(0.2)
    assert found.sums["divergence_by_staleness/5"] == pytest.approx(0.4)  # 5 and more
    assert found.counts["divergence_by_staleness/5/tokens"] == 2
    assert found.sums["masked_share_by_staleness/5"] == 1
    weights = [1.0, 1.4, 1.2, 1.6]
    assert found.sums["importance"] == pytest.approx(sum(weights))
    assert found.sums["importance_square"] == pytest.approx(sum(w * w for w in weights))
    assert found.sums["response_importance"] == pytest.approx(1.4 + 1.2 * 1.6)
    means = {f"{metrics.PREFIX}first_update/{k.removeprefix(metrics.PREFIX)}": [v] for k, v in found.means().items()}
    sizes = staleness.effective_sample_sizes(means)
    expected = sum(weights) ** 2 / (4 * sum(w * w for w in weights))
    assert sizes[metrics.PREFIX + "effective_sample_size/tokens"] == pytest.approx(expected)
    whole = [1.4, 1.92]
    expected = sum(whole) ** 2 / (2 * sum(w * w for w in whole))
    assert sizes[metrics.PREFIX + "effective_sample_size/responses"] == pytest.approx(expected)


def test_weights_are_from_mu_whatever_the_anchor():
    batch = random_batch(seed=4, rows=6, width=8)
    found, _, _ = summary_of(batch, [0] * 6, batch.old_log_prob - 0.5)
    same, _, _ = summary_of(batch, [0] * 6)
    assert found.sums["importance"] == pytest.approx(same.sums["importance"] * math.exp(0.5))
    assert all(metrics.denominator_of(name) in found.counts for name in found.sums)
    assert set(staleness.FIRST_UPDATE) <= set(found.sums)
