"""The logger's numbers: by hand, against loops, and as sums that add up over any split of a batch."""

import math

import pytest
import torch

from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.metrics import DIVERGENCE_BINS, MASK_BINS, PREFIX, summarise
from cppo_verl.trust_region.rules import evaluate
from tests import reference
from tests.helpers import Batch, batch_of, random_batch


def figures(name: str, batch: Batch, **knobs) -> dict[str, float]:
    tokens, chosen = batch.tokens(), TrustRegionKnobs(**knobs)
    verdict, divergence = evaluate(name, tokens, chosen)
    means = summarise(tokens, divergence, verdict, chosen.ratio_cap).means()
    return {key.removeprefix(PREFIX): value for key, value in means.items()}


def log(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_by_hand():
    """delta = .1, delta_b = .02, w = 1, p = 1/2 everywhere; the third response has A = 0 and does not count.

    Row one, A = 1, D = .2 .05 .01: masked by the threshold, by the budget (.25 > .12) and by the budget (.26 > .14).
    Row two, A = -1, q = .35 .48, D = .15 .02: masked by the threshold, then .17 > .12, by the budget.
    """
    batch = batch_of(
        [log(0.7, 0.55, 0.51), log(0.35, 0.48, 0.5), log(0.99, 0.99, 0.99)],
        [log(0.5, 0.5, 0.5)] * 3,
        [[1.0] * 3, [-1.0] * 3, [0.0] * 3],
        [[1, 1, 1], [1, 1, 0], [1, 1, 1]],
    )
    got = figures("cppo", batch, delta=0.1, delta_b=0.02, weights="constant", budget="fixed")
    assert got["masked_share"] == pytest.approx(5 / 5)
    assert got["masked_share_token_threshold"] == pytest.approx(2 / 5)
    assert got["masked_share_prefix_budget"] == pytest.approx(3 / 5)
    assert got["masked_share_positive"] == pytest.approx(3 / 5)
    assert got["masked_share_negative"] == pytest.approx(2 / 5)
    assert got["divergence_mean"] == pytest.approx(0.43 / 5)
    assert got["divergence_max"] == pytest.approx(0.2)
    assert got["prefix_average"] == pytest.approx((0.26 / 3 + 0.17 / 2) / 2)
    assert got["effective_delta_b"] == pytest.approx(0.02)
    assert got["ratio_capped_share"] == 0
    # without the budget only the two beyond the threshold go
    got = figures("dppo", batch, delta=0.1)
    assert got["masked_share"] == got["masked_share_token_threshold"] == pytest.approx(2 / 5)
    assert got["masked_share_prefix_budget"] == 0
    assert "effective_delta_b" not in got


def test_positions_by_hand():
    """Four tokens over eight bins: t/T = 1/4 ends bin 1, 1/2 bin 3, 3/4 bin 5, 1 bin 7; a hole changes nothing."""
    batch = batch_of(
        [log(0.6, 0.9, 0.7, 0.5, 0.8, 0.5)],
        [log(0.5, 0.1, 0.5, 0.5, 0.5, 0.5)],
        [[1.0] * 6],
        [[1, 0, 1, 1, 1, 0]],
    )
    got = figures("dppo", batch, delta=0.15)
    assert [got[f"divergence_by_position/{i}"] for i in range(8)] == pytest.approx([0, 0.1, 0, 0.2, 0, 0, 0, 0.3])
    # ten bins: 1/4 in bin 2, 1/2 in bin 4, 3/4 in bin 7, 1 in bin 9
    expected = [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert [got[f"masked_share_by_position/{i}"] for i in range(10)] == expected


@pytest.mark.parametrize("seed", [1, 3])
def test_against_loops(seed: int):
    batch = random_batch(seed, rows=150, width=25, per_token_advantage=seed == 3)
    if seed == 1:
        batch.old_log_prob -= 4  # ratios beyond the cap
    knobs = TrustRegionKnobs(delta=0.15, delta_b=0.02, w_min=0.6, budget="fixed")
    got = figures("cppo", batch, delta=0.15, delta_b=0.02, w_min=0.6, budget="fixed")
    responses = list(batch.responses())
    decided = [
        reference.algorithm_1(r, "tv", reference.linear_weights(r.valid, knobs.w_min), knobs.delta, knobs.delta_b)
        for r in responses
    ]
    for key, value in reference.logged_shares(responses, "tv", decided).items():
        assert got[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key

    active = [(r, d) for r, d in zip(responses, decided, strict=True) if any(r.advantages[i] != 0 for i in r.columns)]
    averages = [list(d.values())[-1].spent_after / list(d.values())[-1].weight_after for _, d in active]
    assert got["prefix_average"] == pytest.approx(sum(averages) / len(averages), rel=1e-9)

    lengths = [len(r.columns) for r, _ in active]
    by_position = reference.mean_by_position(lengths, [r.divergences("tv") for r, _ in active], DIVERGENCE_BINS)
    masked = [[float(not d[i].kept) for i in r.columns] for r, d in active]
    masked_by_position = reference.mean_by_position(lengths, masked, MASK_BINS)
    for i, value in enumerate(by_position):
        assert got[f"divergence_by_position/{i}"] == pytest.approx(value, rel=1e-4, abs=1e-6)  # float32 running sums
    for i, value in enumerate(masked_by_position):
        assert got[f"masked_share_by_position/{i}"] == pytest.approx(value, rel=1e-6)


def uniform(rows: int, width: int) -> Batch:
    """D uniform in [0, 0.4] at every token."""
    values = torch.rand(rows, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64) * 0.4
    half = torch.full_like(values, 0.5)
    return Batch((half + values).log(), half.log(), torch.ones_like(values), torch.ones_like(values).long())


@pytest.mark.parametrize("valid", [1, 100, 101])
def test_p99_is_the_nearest_rank(valid: int):
    """Of n tokens the one at rank ceil(0.99 n)."""
    batch = uniform(1, valid + 37)
    batch.mask[:, valid:] = 0
    values = batch.tokens().divergence("tv")[0, :valid]
    expected = values.sort().values[math.ceil(0.99 * valid) - 1].item()
    assert figures("dppo", batch)["divergence_p99"] == pytest.approx(expected, rel=1e-9)


def test_p99_of_a_sample_of_many_tokens():
    """Beyond 32,768 tokens a sample stands for the rest."""
    assert figures("dppo", uniform(300, 1000))["divergence_p99"] == pytest.approx(0.396, abs=0.001)


def test_influence_and_bound_by_hand():
    """sum_t (T - t) D_t: row one .2 * 2 + .05 = .45 over 3 pairs; row two, T = 2, .15 over 1 pair.

    lambda_t = 4 lbar (T - t), DPPO at delta = .1: .4 * (.45 + .15) against 2 T (T - 1) delta^2 = .12 and .04.
    """
    batch = batch_of(
        [log(0.7, 0.55, 0.51), log(0.35, 0.48, 0.5)],
        [log(0.5, 0.5, 0.5)] * 2,
        [[1.0] * 3, [-1.0] * 3],
        [[1, 1, 1], [1, 1, 0]],
    )
    got = figures("dppo", batch, delta=0.1)
    assert got["influence_weighted_divergence"] == pytest.approx((0.45 / 3 + 0.15) / 2)
    assert got["bound_realised"] == pytest.approx(0.4 * 0.6 / 2)
    assert got["bound_worst_case"] == pytest.approx(0.16 / 2)
    assert got["bound_usage"] == pytest.approx(0.24 / 0.16)
    # CPPO at w_min = 1/2 has lbar = .2 and delta_b = .02: .8 * .6 against 2 T (T - 1) .2 * .02 = .048 and .016
    got = figures("cppo", batch, delta=0.1, delta_b=0.02, w_min=0.5, budget="fixed")
    assert got["bound_realised"] == pytest.approx(0.8 * 0.6 / 2)
    assert got["bound_worst_case"] == pytest.approx(0.064 / 2)


def test_autocast_changes_no_figure():
    """verl's FSDP, VeOmni and torchtitan engines call the loss under it; products of matrices would be rounded."""
    batch = random_batch(0, rows=4, width=40).to(torch.float32)
    expected = figures("cppo", batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert figures("cppo", batch) == expected
