"""What must not change a decision, and what may change it one way only, on examples that hypothesis makes up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cppo_verl.trust_region.divergence import BINARY
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.metrics import summarise
from cppo_verl.trust_region.rules import RULES, evaluate
from tests import reference
from tests.helpers import Batch, actor_config, decide, run_loss

bounded = settings(max_examples=100)

log_probs = st.floats(-8, -(2.0**-10), width=32)
any_log_probs = st.one_of(st.just(0.0), st.floats(-80, -1e-15))
# drifts of the log-prob: none, small, and large ones
drifts = st.one_of(st.just(0.0), st.floats(-0.25, 0.25, width=32), st.floats(-3, 3, width=32))


@st.composite
def batches(draw, max_rows: int = 4, max_width: int = 12) -> Batch:
    """float32 rows of one width with any mask; log pi is log mu and a drift, below 0."""
    rows, width = draw(st.integers(1, max_rows)), draw(st.integers(1, max_width))
    cells = rows * width

    def grid(values: st.SearchStrategy) -> torch.Tensor:
        drawn = draw(st.lists(values, min_size=cells, max_size=cells))
        return torch.tensor(drawn, dtype=torch.float32).view(rows, width)

    old = grid(log_probs)
    log_prob = (old + grid(drifts)).clamp_max(-(2.0**-10))
    sizes = st.floats(0.25, 2, width=32)
    signs = st.sampled_from([-1.0, 1.0, 1.0, 0.0])
    advantages = [draw(signs) * draw(sizes) for _ in range(rows)]
    mask = grid(st.sampled_from([0.0, 1.0, 1.0])).long()
    return Batch(log_prob, old, torch.tensor(advantages).unsqueeze(-1).expand(rows, width).contiguous(), mask)


@st.composite
def knob_sets(draw, **fixed) -> dict:
    """Knobs of a rule that decides by token and prefix."""
    kind = draw(st.sampled_from(["tv", "kl"]))
    return {
        "divergence": kind,
        "delta": draw(st.floats(0.01, 0.5)),
        "delta_b": draw(st.floats(0.0, 0.1)),
        "w_min": draw(st.floats(0.1, 1.0)),
        "weights": draw(st.sampled_from(["linear", "constant", "shuffled"])),
        "budget": draw(st.sampled_from(["none", "fixed", "quantile"])),
        "gate": draw(st.sampled_from(["hard", "soft", "restore"])),
        "restore_strength": draw(st.sampled_from([0.25, 1.0])),
        "trace": draw(st.sampled_from([1, 1, 2, 20])),
        "horizon": draw(st.sampled_from(["response", "response", "max"])),
        "max_response_length": 40,
    } | fixed


names = st.sampled_from(sorted(RULES))


def gates(name: str, batch: Batch, knobs: dict) -> torch.Tensor:
    """The gate as a number, 0 at invalid positions."""
    verdict, _ = evaluate(name, batch.tokens(), TrustRegionKnobs(**knobs))
    return verdict.gate.double() * batch.mask


def pad(x: torch.Tensor, columns: list[int], value: float) -> torch.Tensor:
    """``x`` with one column of ``value`` put before each of the given columns (0 .. width)."""
    parts, last = [], 0
    for column in sorted(columns):
        parts += [x[:, last:column], torch.full_like(x[:, :1], value)]
        last = column
    return torch.cat([*parts, x[:, last:]], dim=1)


@bounded
@given(names, batches(), knob_sets(), st.data())
def test_padding_columns_anywhere_change_nothing(name: str, batch: Batch, knobs: dict, data):
    """Columns that are valid in no row, put in front, between and behind: the same verdict at every token."""
    width = batch.mask.shape[1]
    places = st.integers(0, width) if knobs["horizon"] == "response" else st.just(width)  # there the column counts
    columns = data.draw(st.lists(places, max_size=5))
    wide = Batch(
        pad(batch.log_prob, columns, data.draw(log_probs)),
        pad(batch.old_log_prob, columns, data.draw(log_probs)),
        pad(batch.advantages, columns, 1.0),
        pad(batch.mask, columns, 0),
    )
    was_there = pad(torch.ones_like(batch.mask), columns, 0).bool()[0]
    assert torch.equal(gates(name, wide, knobs)[:, was_there], gates(name, batch, knobs))


@bounded
@given(names, batches(), knob_sets(horizon="response"), st.data())
def test_moving_padding_within_a_row_changes_nothing(name: str, batch: Batch, knobs: dict, data):
    """Each row's invalid columns are dealt anew among its valid ones, which keep their order."""
    width = batch.mask.shape[1]
    order = []
    for row in batch.mask.tolist():
        where = sorted(data.draw(st.permutations(range(width)))[: sum(row)])
        invalid = iter(i for i, ok in enumerate(row) if not ok)
        valid = iter(i for i, ok in enumerate(row) if ok)
        order.append([next(valid) if i in where else next(invalid) for i in range(width)])
    index = torch.tensor(order)
    moved = Batch(*(x.gather(1, index) for x in (batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask)))
    assert torch.equal(gates(name, moved, knobs), gates(name, batch, knobs).gather(1, index))


@bounded
@given(names, batches(), knob_sets(), st.data())
def test_micro_batches_and_their_order_change_nothing(name: str, batch: Batch, knobs: dict, data):
    whole = gates(name, batch, knobs)
    rows = data.draw(st.permutations(range(len(batch.mask))))
    cut = data.draw(st.integers(0, len(rows)))
    for part in (rows[:cut], rows[cut:]):
        if part:
            assert torch.equal(gates(name, batch.rows(part), knobs), whole[part])


@bounded
@given(names, batches(), knob_sets(), st.integers(-12, 12), st.floats(1, 2))
def test_scaling_the_advantages_changes_no_gate(name: str, batch: Batch, knobs: dict, power: int, factor: float):
    scaled = Batch(batch.log_prob, batch.old_log_prob, batch.advantages * (factor * 2.0**power), batch.mask)
    assert torch.equal(gates(name, scaled, knobs), gates(name, batch, knobs))


@bounded
@given(batches(), knob_sets(gate="hard"))
def test_float64_of_the_same_values_decides_the_same(batch: Batch, knobs: dict):
    """But for tokens whose margin is rounding: |Z_t - c_t| <= 1e-6 (1 + S_t), or rho = 1 to float32."""
    chosen = TrustRegionKnobs(**knobs)
    wide = batch.to(torch.float64)
    narrow, exact = gates("cppo", batch, knobs), gates("cppo", wide, knobs)
    for row, decisions in enumerate(decide(wide, chosen)):
        for column, decision in decisions.items():
            near = abs(wide.log_prob[row, column] - wide.old_log_prob[row, column]) < 1e-7
            if decision.margin > 1e-6 * (1 + decision.spent_after) and not near:
                assert narrow[row, column] == exact[row, column] == decision.kept


@bounded
@given(batches(), knob_sets(gate="hard"), st.floats(1, 4), st.sampled_from(["delta", "delta_b"]))
def test_a_larger_threshold_or_budget_never_masks_more(batch: Batch, knobs: dict, factor: float, name: str):
    """Neither S_t nor w_t depends on them."""
    larger = knobs | {name: min(knobs[name] * factor, 1.0)}
    assert (gates("cppo", batch, larger) >= gates("cppo", batch, knobs)).all()


@bounded
@given(batches(), knob_sets(gate="hard"))
def test_rules_are_ordered(batch: Batch, knobs: dict):
    """With w = 1: CPPO keeps no token that DPPO masks, and no budget keeps every token that a budget keeps."""
    flat = knobs | {"weights": "constant"}
    assert (gates("cppo", batch, flat) <= gates("dppo", batch, flat)).all()
    assert (gates("cppo", batch, knobs) <= gates("cppo", batch, knobs | {"budget": "none"})).all()


@bounded
@given(batches(), knob_sets(gate="soft"), st.sampled_from(["inverse", "sapo"]))
def test_a_soft_gate_stays_in_the_unit_interval_and_above_the_hard_one(batch: Batch, knobs: dict, attenuation: str):
    soft = gates("cppo", batch, knobs | {"attenuation": attenuation})
    assert ((soft >= 0) & (soft <= 1)).all()
    hard = gates("cppo", batch, knobs | {"gate": "hard"})
    boundary = 1e-5  # x = 1 to rounding
    assert (soft[hard == 1] >= 1 - boundary).all()


@bounded
@given(names, batches(), knob_sets())
def test_gradient_is_zero_or_away_from_it_exactly_as_the_gate_says(name: str, batch: Batch, knobs: dict):
    loss, gradient, reported = run_loss(name, batch, actor_config({"batch_num_tokens": 7}, **knobs))
    assert loss.isfinite()
    gate = gates(name, batch, knobs)
    assert torch.equal(gradient != 0, (gate != 0) & (batch.advantages != 0) & batch.mask.bool())
    assert torch.equal(gradient < 0, (gradient != 0) & (batch.advantages * gate > 0))
    assert all(math.isfinite(value) for value in reported.values())


@bounded
@given(names, batches(), knob_sets())
def test_metric_shares_partition_and_add_up_over_rows(name: str, batch: Batch, knobs: dict):
    def sums(part: Batch):
        tokens, chosen = part.tokens(), TrustRegionKnobs(**knobs)
        verdict, divergence = evaluate(name, tokens, chosen)
        return summarise(tokens, divergence, verdict, chosen.ratio_cap)

    whole = sums(batch)
    masked = whole.sums["masked_share"]
    parts = whole.sums["masked_share_token_threshold"] + whole.sums["masked_share_prefix_budget"]
    assert parts == pytest.approx(masked, abs=1e-5)
    signs = whole.sums["masked_share_positive"] + whole.sums["masked_share_negative"]
    assert signs == pytest.approx(masked, abs=1e-5)
    assert min(whole.sums[f"masked_share_{part}"] for part in ("prefix_budget", "negative")) >= -1e-5
    rows = [sums(batch.rows([row])) for row in range(len(batch.mask))]
    for key, total in whole.sums.items():
        if key != "divergence_p99":
            assert sum(row.sums[key] for row in rows) == pytest.approx(total, rel=1e-5, abs=1e-6), key
    for key, total in whole.counts.items():
        assert sum(row.counts[key] for row in rows) == pytest.approx(total, rel=1e-5, abs=1e-6), key
    assert max(row.maxima["divergence_max"] for row in rows) == whole.maxima["divergence_max"]


# ---- the pieces


@bounded
@given(st.lists(st.tuples(any_log_probs, any_log_probs), min_size=1, max_size=30))
def test_divergences_are_finite_non_negative_and_pinsker(pairs: list[tuple[float, float]]):
    log_q, log_p = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    tv, kl = BINARY["tv"](log_q, log_p), BINARY["kl"](log_q, log_p)
    assert tv.isfinite().all()
    assert kl.isfinite().all()
    assert ((tv >= 0) & (tv <= 1)).all()
    assert (kl >= 2 * tv.square() - 1e-15).all()  # Pinsker
    for (q, p), got_tv, got_kl in zip(pairs, tv.tolist(), kl.tolist(), strict=True):
        assert got_tv == pytest.approx(reference.tv(q, p), abs=1e-15)
        exact = reference.kl(q, p)
        if math.isfinite(exact):
            assert got_kl == pytest.approx(exact, rel=1e-12, abs=1e-14)
