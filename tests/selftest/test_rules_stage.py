"""The stage ``rules``: holds for the package's rules, and finds rules that are wrong in one place."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cppo_verl.selftest import expected, rules
from cppo_verl.selftest.batches import Batch, binary_batch, topk_batch
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import FAILS, HOLDS
from cppo_verl.trust_region import budget, schedule
from cppo_verl.trust_region import rules as package
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from tests import reference
from tests.helpers import Batch as Plain
from tests.helpers import decide

SETTING = Setting(Path(), "cpu", 2)
CPPO = {"cppo, hard gate", "cppo, soft gate", "cppo, restore gate"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer tokens than the command takes, and one dtype."""
    batches = [binary_batch(12, 160), topk_batch(6, 96, rules.K)]
    monkeypatch.setattr(rules, "batches", lambda _: batches)
    monkeypatch.setattr(rules, "DTYPES", (torch.float32,))


def failed() -> set[str]:
    """The rows that do not hold, by what was measured."""
    return {row.what.split(":")[0] for row in rules.measure(SETTING) if row.verdict == FAILS}


def test_the_packages_rules_hold_and_decide_something(monkeypatch):
    monkeypatch.setattr(rules, "DTYPES", (torch.float32, torch.bfloat16))
    rows = list(rules.measure(SETTING))
    assert {row.verdict for row in rows} == {HOLDS}, [row for row in rows if row.verdict != HOLDS]
    said = " ".join(row.what for row in rows)
    assert all(name in said for name in (*package.RULES, "hard gate", "soft gate", "binary KL", "topk TV"))
    for row in rows:
        if "decisions that differ" in row.what:
            assert 2 <= int(row.note.split(", ")[-1].removesuffix("% masked")) <= 80, row


@pytest.mark.parametrize("kind", ["tv", "kl"])
@pytest.mark.parametrize("shape", ["response", "max"])
@pytest.mark.parametrize("limit", ["none", "fixed", "quantile"])
def test_the_definitions_agree_with_the_loops_of_the_reference(kind, shape, limit):
    """Three writings of one algorithm: the package's, the selftest's tensors, the tests' plain loops."""
    knobs = TrustRegionKnobs(divergence=kind, horizon=shape, budget=limit, **rules.THRESHOLDS["cppo", kind])
    batch = binary_batch(8, 60)
    d = expected.binary(batch.log_prob, batch.old_log_prob, kind)
    allowed = expected.cppo(expected.Case(batch, d, knobs))
    loops = decide(Plain(batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask), knobs)
    checked = 0
    for row, decisions in enumerate(loops):
        for column, decision in decisions.items():
            if decision.toward or decision.margin > 1e-4:
                assert float(allowed.low[row, column]) == float(allowed.high[row, column]) == decision.kept
                checked += 1
    assert checked > 150


@pytest.mark.parametrize(("offset", "certain"), [(0.0, False), (2e-8, False), (1e-5, True), (-1e-5, True)])
def test_a_threshold_that_rounding_can_cross_is_excused_and_no_other(offset, certain):
    batch = binary_batch(1, 40)
    batch = dataclasses.replace(batch, advantages=torch.ones_like(batch.advantages))
    d = expected.binary(batch.log_prob, batch.old_log_prob, "tv")
    away = (batch.log_prob > batch.old_log_prob) & (d.value > 0.01)
    column = int(away[0].nonzero()[0])
    allowed = expected.dppo(expected.Case(batch, d, TrustRegionKnobs(delta=float(d.value[0, column]) + offset)))
    low, high = float(allowed.low[0, column]), float(allowed.high[0, column])
    assert (low, high) == ((offset > 0, offset > 0) if certain else (0, 1))


def broken(monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    """The package, wrong in one place."""
    honest = dict(package.RULES)
    with_ = dataclasses.replace

    def shifted(d):
        return torch.maximum(d, 0.5 * torch.cat([torch.zeros_like(d[:, :1]), d[:, :-1]], -1))

    def by_column(mask, w_min, dtype, *_):
        return schedule.linear_weights_max(mask, w_min, None, dtype)

    def damped(verdict):
        return with_(verdict, weight=0.999 * verdict.weight)

    rules_by_mutation = {
        "threshold without weight": ("cppo", lambda t, d, k: honest["cppo"](t, d, with_(k, w_min=1.0))),
        "budget that pays twice": ("cppo", lambda t, d, k: honest["cppo"](t, shifted(d), k)),
        "half-precision divergence": ("cppo", lambda t, d, k: honest["cppo"](t, d.bfloat16().float(), k)),
        "first clause turned round": ("dppo", lambda t, d, k: honest["dppo"](with_(t, advantages=-t.advantages), d, k)),
        "mean over padding": (
            "trm_avg",
            lambda t, d, k: honest["trm_avg"](with_(t, mask=torch.ones_like(t.mask)), d, k),
        ),
        "damped weight": ("minpro", lambda t, d, k: damped(honest["minpro"](t, d, k))),
    }
    if mutation in rules_by_mutation:
        monkeypatch.setitem(package.RULES, *rules_by_mutation[mutation])
    elif mutation == "quantile of all columns":
        quantile = budget._quantile
        monkeypatch.setattr(budget, "_quantile", lambda v, count, q: quantile(v, count * 0 + v.shape[-1], q))
    else:
        monkeypatch.setattr(schedule, "linear_weights", by_column)


@pytest.mark.parametrize(
    ("mutation", "found"),
    [
        ("threshold without weight", CPPO),
        ("budget that pays twice", CPPO),
        ("half-precision divergence", CPPO),
        ("first clause turned round", {"dppo, hard gate", "dppo, restore gate"}),
        ("mean over padding", {"trm_avg"}),
        ("quantile of all columns", CPPO),
        ("weights by column", CPPO),
        ("damped weight", {"minpro"}),
    ],
)
def test_a_rule_that_is_wrong_in_one_place_is_found(monkeypatch, mutation, found):
    broken(monkeypatch, mutation)
    assert failed() == found


def test_a_divergence_that_rounds_more_than_float32_is_found(monkeypatch):
    honest = package.Tokens.divergence
    monkeypatch.setattr(package.Tokens, "divergence", lambda tokens, kind: honest(tokens, kind).half().float())
    assert {"binary TV", "binary KL"} <= failed()


def test_a_rule_without_a_definition_here_is_compared_with_its_own_float64(monkeypatch):
    monkeypatch.setitem(package.RULES, "stranger", package.RULES["dppo"])
    assert not failed()

    def low(tokens, divergence, knobs):
        exact = tokens.log_prob.dtype == torch.float64
        return package.RULES["dppo"](tokens, divergence if exact else 1.01 * divergence, knobs)

    monkeypatch.setitem(package.RULES, "stranger", low)
    assert failed() == {"stranger"}


def test_the_batch_is_the_same_every_time_and_has_the_odd_rows():
    one, two = binary_batch(12, 160), binary_batch(12, 160)
    assert torch.equal(one.log_prob, two.log_prob) and torch.equal(one.mask, two.mask)
    counts = one.mask.sum(-1).tolist()
    assert counts[:3] == [160, 0, 1]
    assert (one.log_prob < 0).all() and (one.old_log_prob < 0).all()
    listed = topk_batch(6, 96, 20).topk
    assert listed is not None and (listed.log_mu.exp().sum(-1) < 1).all()


def test_top_k_definition_against_full_sums():
    """K of everything is the whole vocabulary: D_t is then half the l1 distance of the two policies."""
    batch: Batch = topk_batch(4, 12, 63)
    assert batch.topk is not None
    d = expected.top_k(batch, "tv")
    p = torch.cat([batch.topk.log_mu.exp(), batch.old_log_prob.exp().unsqueeze(-1)], -1)
    q = torch.cat(
        [torch.where(batch.topk.log_mu > -torch.inf, batch.topk.log_pi.exp(), 0), batch.log_prob.exp().unsqueeze(-1)],
        -1,
    )
    rest = (1 - q.sum(-1) - (1 - p.sum(-1))).abs()
    torch.testing.assert_close(d.value, 0.5 * ((q - p).abs().sum(-1) + rest), atol=1e-12, rtol=0)
    assert reference.tv(float(batch.log_prob[0, 0]), float(batch.old_log_prob[0, 0])) <= float(d.value[0, 0]) + 1e-12
