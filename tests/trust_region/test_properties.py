"""What must not change a decision, and what follows from one, on examples that hypothesis makes up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.loss import policy_loss
from cppo_verl.trust_region.metrics import summarise
from cppo_verl.trust_region.rules import RULES, evaluate
from tests.helpers import Batch

bounded = settings(max_examples=60)

log_probs = st.floats(-8, -(2.0**-10), width=32)
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


@bounded
@given(names, batches(), knob_sets(horizon="response"), st.integers(0, 4), st.data())
def test_holes_and_padding_anywhere_change_nothing(name: str, batch: Batch, knobs: dict, extra: int, data):
    """Each row's valid tokens keep their order and are dealt anew over a wider row; elsewhere stands anything."""
    rows, width = batch.mask.shape
    wide = Batch(*(torch.full((rows, width + extra), data.draw(log_probs)) for _ in range(3)), batch.mask)
    wide.mask = torch.zeros(rows, width + extra, dtype=torch.long)
    for row, mask in enumerate(batch.mask.bool()):
        places = sorted(data.draw(st.permutations(range(width + extra)))[: int(mask.sum())])
        for new, old in zip(vars(wide).values(), vars(batch).values(), strict=True):
            new[row, places] = old[row, mask]
    assert torch.equal(gates(name, wide, knobs)[wide.mask.bool()], gates(name, batch, knobs)[batch.mask.bool()])


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
@given(names, batches(), knob_sets())
def test_gradient_is_zero_or_away_from_it_exactly_as_the_gate_says(name: str, batch: Batch, knobs: dict):
    log_prob = batch.log_prob.clone().requires_grad_()
    tensors = batch.old_log_prob, batch.advantages, batch.mask
    loss, reported = policy_loss(name, log_prob, *tensors, TrustRegionKnobs(**knobs))
    (gradient,) = torch.autograd.grad(loss, log_prob)
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
