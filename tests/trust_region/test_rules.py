"""Which tokens DPPO and CPPO keep: by hand, and against Algorithm 1 as a loop over thousands of random responses."""

import dataclasses
import math

import pytest
import torch

from cppo_verl.trust_region.gate import attenuate
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate
from tests import reference
from tests.helpers import Batch, batch_of, decide, random_batch, run_loss
from tests.helpers import actor_config as actor

# ---- by hand: probabilities 0.5 under mu, so that D = |q - 0.5| is read off


def from_probabilities(q: list[list[float]], advantage: list[float]) -> Batch:
    probabilities = torch.tensor(q, dtype=torch.float64)
    advantages = torch.tensor(advantage, dtype=torch.float64).unsqueeze(-1).expand_as(probabilities)
    log_mu = torch.full_like(probabilities, 0.5).log()
    return Batch(probabilities.log(), log_mu, advantages, torch.ones_like(probabilities, dtype=torch.long))


def kept(name: str, batch: Batch, **knobs) -> list[list[int]]:
    verdict, _ = evaluate(name, batch.tokens(), TrustRegionKnobs(**knobs))
    return (verdict.gate & batch.mask.bool()).int().tolist()


def test_dppo_by_hand():
    q = [[0.60, 0.66, 0.34, 0.40]] * 3
    batch = from_probabilities(q, [1.0, -1.0, 0.0])
    assert kept("dppo", batch, delta=0.15) == [[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]  # 0.34: back toward mu


def test_cppo_by_hand():
    """delta = 0.1, delta_b = 0.02, w = 1. D = .08 .08 .08 .01; S before = 0 .08 .16 .24; c = .1 .04 -.02 -.08."""
    batch = from_probabilities([[0.58, 0.58, 0.58, 0.51]], [1.0])
    fixed = {"delta": 0.1, "delta_b": 0.02, "weights": "constant", "budget": "fixed"}
    assert kept("cppo", batch, **fixed) == [[1, 0, 0, 0]]
    assert kept("cppo", batch, **fixed | {"delta_b": 0.071}) == [[1, 1, 1, 1]]  # c_2 = .091, c_3 = .082, c_4 = .073
    assert kept("cppo", batch, **fixed | {"delta_b": 0.03}) == [[1, 0, 0, 0]]  # c_2 = .05, c_3 = 0, c_4 = -.05
    assert kept("cppo", batch, **fixed | {"delta_b": 0.055}) == [[1, 0, 0, 1]]  # c_2 = .075, c_3 = .05, c_4 = .025


def test_what_lies_at_a_threshold_is_within_it():
    """Binary fractions, so that no sum rounds. CPPO: c = .25, then .125 at each, for tokens 2 to 4."""
    batch = from_probabilities([[0.6] * 4], [1.0])
    divergence = torch.tensor([[0.25, 0.125, 0.125, 0.126]], dtype=torch.float64)
    knobs = TrustRegionKnobs(delta=0.25, delta_b=0.125, weights="constant", budget="fixed")

    def gate(name: str, times: float = 1.0) -> list[list[bool]]:
        return evaluate(name, batch.tokens(), knobs, times * divergence)[0].gate.tolist()

    assert gate("cppo") == [[True, True, True, False]]
    assert gate("dppo") == [[True] * 4] and gate("dppo", 2) == [[False, True, True, False]]
    assert gate("trm_max") == [[True] * 4] and gate("trm_max", 1.001) == [[False] * 4]


def test_soft_gate_by_hand():
    """delta = .1, delta_b = .05, w = 1, D = .2 .05 .01: x = max(2, 2), max(.5, .25/.15), max(.1, .26/.2)."""
    batch = from_probabilities([[0.7, 0.55, 0.51]], [1.0])
    knobs = TrustRegionKnobs(delta=0.1, delta_b=0.05, weights="constant", budget="fixed", gate="soft")
    verdict, _ = evaluate("cppo", batch.tokens(), knobs)
    assert verdict.gate.tolist() == [pytest.approx([1 / 2, 3 / 5, 10 / 13])]
    away, _ = evaluate("cppo", dataclasses.replace(batch, advantages=-batch.advantages).tokens(), knobs)
    assert away.gate.tolist() == [[1, 1, 1]]


# ---- Algorithm 1, token by token

KNOBS = {
    "tv": {"delta": 0.15, "delta_b": 0.02, "w_min": 0.6},
    "kl": {"delta": 0.1, "delta_b": 0.002, "w_min": 0.6},
}
HORIZONS = [("response", None), ("max", None), ("max", 64)]
BUDGETS = ("none", "fixed", "quantile")
WEIGHTS = ("linear", "constant", "shuffled")
WIDTH = 33
ROWS = 120


def settings(kind: str, horizon: tuple[str, int | None], budget: str, weights: str) -> dict:
    chosen = KNOBS[kind] | {
        "divergence": kind,
        "horizon": horizon[0],
        "max_response_length": horizon[1],
        "budget": budget,
        "weights": weights,
    }
    if weights == "shuffled":  # and Eq. 22 away from its defaults, as the authors' verl version has it
        chosen |= {"budget_quantile": 0.7, "budget_scale": 0.6, "budget_cap": 5.0}
    return chosen


def compare(batch: Batch, name: str, chosen: dict) -> tuple[list[reference.Decision], list[reference.Decision]]:
    """All reference decisions, and those that the registered loss and the verdict do not share.

    Kept means: a gradient where the advantage is not 0, and kept by the verdict everywhere.
    """
    knobs = TrustRegionKnobs(**chosen)
    verdict, _ = evaluate(name, batch.tokens(), knobs)
    _, gradient, _ = run_loss(name, batch, actor(**chosen))
    assert (gradient[~batch.mask.bool()] == 0).all()
    every, different = [], []
    for row, decisions in enumerate(decide(batch, knobs)):
        for column, decision in decisions.items():
            every.append(decision)
            by_verdict = bool(verdict.gate[row, column])
            if batch.advantages[row, column] != 0:
                assert (gradient[row, column] != 0).item() == by_verdict
            if by_verdict != decision.kept:
                different.append(decision)
    return every, different


# every budget beside all weights, in a Latin square with the horizons
COMBINATIONS = [
    (kind, HORIZONS[(i + j) % 3], budget, weights)
    for kind in KNOBS
    for i, budget in enumerate(BUDGETS)
    for j, weights in enumerate(WEIGHTS)
]


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_cppo_keeps_what_algorithm_1_keeps(number: int):
    """float64: every decision; float32: every decision whose float64 margin is above rounding. 18 x 120 responses."""
    chosen = settings(*COMBINATIONS[number])
    batch = random_batch(seed=number, rows=ROWS, width=WIDTH, per_token_advantage=number % 3 == 2)

    every, different = compare(batch, "cppo", chosen)
    assert different == []
    # Each way of deciding is well represented, so that agreement means something.
    masked_by_token = sum(not d.kept and d.over_token for d in every)
    masked_by_prefix = sum(not d.kept and not d.over_token for d in every)
    saved = sum(d.toward and d.spending > d.threshold for d in every)
    assert len(every) > 1000
    assert min(masked_by_token, saved) > 40
    assert masked_by_prefix > 40 or chosen["budget"] == "none"

    every, different = compare(batch.to(torch.float32), "cppo", chosen)
    for decision in different:
        assert decision.margin < 1e-6 * (1 + decision.spent_after), decision
    assert len(different) <= 2


def test_float32_decisions_over_long_responses():
    """Up to 2048 tokens a response: rounding in the prefix sums stays within the margin, and flips are rare."""
    batch = random_batch(seed=99, rows=8, width=2048).to(torch.float32)
    every, different = compare(batch, "cppo", settings("tv", ("response", None), "quantile", "linear"))
    assert all(d.margin < 1e-6 * (1 + d.spent_after) for d in different)
    assert len(different) < 1e-4 * len(every)


def test_the_first_clause_of_nearly_equal_log_probs_in_float32():
    """A confident token moves away from mu by less than float32 can tell from rho = 1; the prefix budget is spent.

    log pi = -1e-8 against log mu = -2e-8, A = 1: rho > 1, S_1 = 0.9 > delta + delta_b, so Algorithm 1 masks it.
    """
    batch = batch_of([[-0.01, -1e-8]], [[-3.0, -2e-8]], [[1.0, 1.0]], [[1, 1]], dtype=torch.float32)
    chosen = KNOBS["tv"] | {"budget": "fixed"}
    _, different = compare(batch, "cppo", chosen)
    assert different == []


@pytest.mark.parametrize(("kind", "gate"), [("tv", "hard"), ("kl", "hard"), ("tv", "soft")])
def test_constant_weights_without_budget_are_dppo_to_the_bit(kind: str, gate: str):
    """``dppo`` ignores the knobs of the schedule and the budget."""
    batch = random_batch(seed=4, rows=100, width=25).to(torch.float32)
    chosen = settings(kind, HORIZONS[0], "none", "constant") | {"gate": gate}
    loss, gradient, _ = run_loss("cppo", batch, actor(**chosen))
    other = run_loss("dppo", batch, actor(**chosen | {"weights": "linear", "budget": "quantile"}))
    assert torch.equal(loss, other[0]) and torch.equal(gradient, other[1])
    assert (gradient != 0).any()


# ---- rules on whole responses, and rules that mask nothing


def test_trm_by_hand():
    """p = 1/2: KL = -1/2 log(4 q (1 - q)). q = .6 gives .0204, q = .7 gives .0872, their mean is .0538."""
    batch = from_probabilities([[0.6, 0.7], [0.6, 0.6]], [1.0, -1.0])
    assert kept("trm_max", batch, divergence="kl", delta=0.09) == [[1, 1], [1, 1]]
    assert kept("trm_max", batch, divergence="kl", delta=0.08) == [[0, 0], [1, 1]]
    assert kept("trm_max", batch, divergence="kl", delta=0.02) == [[0, 0], [0, 0]]  # the second has A < 0: no clause
    assert kept("trm_avg", batch, divergence="kl", delta=0.054) == [[1, 1], [1, 1]]
    assert kept("trm_avg", batch, divergence="kl", delta=0.053) == [[0, 0], [1, 1]]
    assert kept("trm_max_avg", batch, divergence="kl", delta=0.09, delta_b=0.053) == [[0, 0], [1, 1]]
    assert kept("trm_max_avg", batch, divergence="kl", delta=0.08, delta_b=0.06) == [[0, 0], [1, 1]]
    assert kept("trm_max_avg", batch, divergence="kl", delta=0.09, delta_b=0.06) == [[1, 1], [1, 1]]


def test_minpro_by_hand():
    """rho = 1.2 .5 .8 2: weights 1.2, .5 * 1.2, .8 * .5, 2 * .5; the cap of 1.1 cuts the first."""
    rho = torch.tensor([[1.2, 0.5, 0.8, 2.0]], dtype=torch.float64)
    old = torch.full_like(rho, -3.0)
    batch = Batch(old + rho.log(), old, torch.full_like(rho, 2.0), torch.ones_like(rho).long())
    _, gradient, _ = run_loss("minpro", batch, actor(ratio_cap=1.1))
    assert gradient.tolist() == [pytest.approx([-2 * w / 4 for w in (1.1, 0.6, 0.4, 1.0)])]


# ---- the pieces around it


@pytest.mark.parametrize(("attenuation", "budget"), [("inverse", "none"), ("inverse", "quantile"), ("sapo", "fixed")])
def test_soft_gate_against_loops(attenuation: str, budget: str):
    def g(x: float) -> float:
        if x <= 1:
            return 1.0
        s = 1 / (1 + math.exp(1 - x)) if x < 700 else 1.0
        return 1 / x if attenuation == "inverse" else 4 * s * (1 - s) / x

    batch = random_batch(seed=8, rows=150, width=20)
    chosen = settings("tv", ("response", None), budget, "linear") | {"gate": "soft", "attenuation": attenuation}
    knobs = TrustRegionKnobs(**chosen)
    verdict, _ = evaluate("cppo", batch.tokens(), knobs)
    _, gradient, _ = run_loss("cppo", batch, actor(**chosen))
    partial = 0
    for row, response in enumerate(batch.responses()):
        delta_b = None if budget == "none" else knobs.delta_b
        if budget == "quantile":
            delta_b = reference.quantile_budget(response.divergences("tv"), knobs.delta_b)
        weights = reference.linear_weights(response.valid, knobs.w_min)
        for column, gate in reference.soft_gate(response, "tv", weights, knobs.delta, delta_b, g).items():
            assert verdict.gate[row, column].item() == pytest.approx(gate, rel=1e-12)
            expected = reference.coefficient(response, column) * gate / int(batch.mask.sum())
            assert gradient[row, column].item() == pytest.approx(expected, rel=1e-12)
            partial += 0 < gate < 1
    assert partial > 40


@pytest.mark.parametrize("kind", ["inverse", "sapo"])
def test_attenuation_is_admissible(kind: str):
    """g(x) = 1 up to 1, in [0, 1], non-increasing, x g(x) <= 1 (Appendix C)."""
    rounding = torch.finfo(torch.float32).eps
    assert (attenuate(torch.linspace(0, 1, 101), kind) == 1).all()
    outside = torch.cat([torch.linspace(1, 5, 5001), torch.logspace(0.7, 30, 2000)])
    g = attenuate(outside, kind)
    assert g[0] == 1 and (g >= 0).all() and (g.diff() <= rounding).all() and (outside * g <= 1 + rounding).all()


# ---- gates that pull back


def test_a_restoring_gate_by_hand():
    """The masks of test_dppo_by_hand and test_cppo_by_hand, turned round instead of dropped."""
    knobs = TrustRegionKnobs(delta=0.15, gate="restore", restore_strength=0.25)
    verdict, _ = evaluate("dppo", from_probabilities([[0.60, 0.66, 0.34, 0.40]], [1.0]).tokens(), knobs)
    assert verdict.gate.tolist() == [[1, -0.25, 1, 1]]
    batch = from_probabilities([[0.58, 0.58, 0.58, 0.51]], [1.0])
    knobs = TrustRegionKnobs(delta=0.1, delta_b=0.03, weights="constant", budget="fixed", gate="restore")
    verdict, _ = evaluate("cppo", batch.tokens(), knobs)
    assert verdict.gate.tolist() == [[1, -1, -1, -1]]


def test_gbpo_by_hand():
    """epsilon = .25. A > 0 has the target 1.25, A < 0 the target .75; the gradient is |A| rho sign(rho - target)."""
    rho = torch.tensor([[0.5, 1.2, 1.3, 2.0], [0.5, 0.7, 0.8, 2.0], [0.5, 0.9, 1.5, 2.0]], dtype=torch.float64)
    old = torch.full_like(rho, -3.0)
    advantages = torch.tensor([[2.0], [-1.0], [0.0]], dtype=torch.float64).expand_as(rho).contiguous()
    batch = Batch(old + rho.log(), old, advantages, torch.ones_like(rho).long())
    _, gradient, reported = run_loss("gbpo", batch, actor(delta=0.25))
    expected = [[-1.0, -2.4, 2.6, 4.0], [-0.5, -0.7, 0.8, 2.0], [0.0] * 4]
    torch.testing.assert_close(12 * gradient, torch.tensor(expected, dtype=torch.float64))
    assert reported["actor/trust_region/masked_share"] == pytest.approx(4 / 8)
