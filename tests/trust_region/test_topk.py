"""The top-K divergence: by hand, against the full vocabulary, at the edges of float32, and through its coding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cppo_verl.trust_region import topk
from cppo_verl.trust_region.divergence import BINARY, IMPOSSIBLE, binary_tv, full_tv

KINDS = ["tv", "kl"]


def full_kl(log_pi: Tensor, log_mu: Tensor) -> Tensor:
    return (log_mu.exp() * (log_mu - log_pi)).sum(-1)


FULL = {"tv": full_tv, "kl": full_kl}


class Policies:
    """Random mu and pi over 24 tokens, peaked to flat and near to far; sampled tokens of mu, and mu's top-K."""

    def __init__(self, seed: int, k: int, tokens: int = 400, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(seed)
        peaked = torch.logspace(-1, 1.2, tokens).unsqueeze(-1)
        drift = torch.logspace(-3, 0.5, tokens)[torch.randperm(tokens, generator=generator)].unsqueeze(-1)
        mu_logits = peaked * torch.randn(tokens, 24, generator=generator)
        pi_logits = mu_logits + drift * torch.randn(tokens, 24, generator=generator)
        self.log_mu, self.log_pi = (x.to(dtype).log_softmax(-1) for x in (mu_logits, pi_logits))
        self.sampled_ids = torch.multinomial(self.log_mu.exp(), 1, generator=generator).squeeze(-1)
        self.sampled = tuple(
            x.gather(-1, self.sampled_ids.unsqueeze(-1)).squeeze(-1) for x in (self.log_pi, self.log_mu)
        )
        self.ids = self.log_mu.topk(k).indices
        self.listed = self.log_mu.gather(-1, self.ids)

    def divergence(self, kind: str) -> Tensor:
        log_mu = topk.without_sampled(self.listed, self.ids, self.sampled_ids)
        return topk.TOPK[kind](self.log_pi.gather(-1, self.ids), log_mu, *self.sampled)

    def by_categories(self, kind: str) -> tuple[Tensor, Tensor]:
        """The same from the definition, {top-K, sampled} and the rest; and what REST_FLOOR can take off the KL."""
        there = torch.zeros_like(self.log_mu, dtype=torch.bool).scatter_(-1, self.ids, True)
        there.scatter_(-1, self.sampled_ids.unsqueeze(-1), True)
        p, q = self.log_mu.exp(), self.log_pi.exp()
        p_rest, q_rest = (x.masked_fill(there, 0.0).sum(-1) for x in (p, q))
        if kind == "tv":
            total = 0.5 * ((q - p).abs().masked_fill(~there, 0.0).sum(-1) + (q_rest - p_rest).abs())
            return total, torch.zeros_like(total)
        p_floor, q_floor = (x.clamp_min(topk.REST_FLOOR) for x in (p_rest, q_rest))
        total = (q - p + p * (p / q).log()).masked_fill(~there, 0.0).sum(-1)
        total = total + q_floor - p_floor + p_floor * (p_floor / q_floor).log()
        shortfall = (topk.REST_FLOOR / q_rest.clamp_min(1e-300)).clamp_min(1).log()
        return total, p_rest * shortfall + topk.REST_FLOOR * (1 - math.log(topk.REST_FLOOR))


MU = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
PI = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sampled", "mu_categories", "pi_categories"),
    [
        (0, [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]),  # among mu's top 2: TV 1/2 (0.1 + 0 + 0.1)
        (3, [0.5, 0.3, 0.05, 0.15], [0.4, 0.3, 0.1, 0.2]),  # outside: TV 1/2 (0.1 + 0 + 0.05 + 0.05)
    ],
)
def test_two_of_four_tokens_by_hand(sampled: int, mu_categories: list, pi_categories: list):
    ids = torch.tensor([0, 1])
    log_mu = topk.without_sampled(MU[ids].log(), ids, torch.tensor(sampled))
    arguments = (PI[ids].log(), log_mu, PI[sampled].log(), MU[sampled].log())
    assert topk.topk_tv(*arguments).item() == pytest.approx(0.1, abs=1e-12)
    kl = sum(p * math.log(p / q) for p, q in zip(mu_categories, pi_categories, strict=True))
    assert topk.topk_kl(*arguments).item() == pytest.approx(kl, abs=1e-12)
    assert topk.rest_mass(log_mu, MU[sampled].log()).item() == pytest.approx(0.2 if sampled == 0 else 0.15, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 24))
def test_binary_topk_full(kind: str, seed: int, k: int):
    exact, single = Policies(seed, k), Policies(seed, k, dtype=torch.float32)
    value, (by_categories, taken) = exact.divergence(kind), exact.by_categories(kind)
    assert (BINARY[kind](*exact.sampled) <= value + taken + 1e-15).all()
    assert (value <= FULL[kind](exact.log_pi, exact.log_mu) + 1e-10).all()
    torch.testing.assert_close(value, by_categories, rtol=1e-9, atol=1e-12)
    # KL divides by pi's rest, which float32 knows to 1e-7: a tenth of the floor
    tolerance = {"rtol": 2e-5, "atol": 3e-6} if kind == "tv" else {"rtol": 0.1, "atol": 3e-6}
    torch.testing.assert_close(single.divergence(kind).double(), value, **tolerance)
    assert kind == "kl" or (binary_tv(*single.sampled) <= single.divergence(kind)).all()
    exact.log_pi, exact.sampled = exact.log_mu, (exact.sampled[1], exact.sampled[1])
    assert (exact.divergence(kind) == 0).all()


# ---- where float32 ends


@pytest.mark.parametrize("kind", KINDS)
def test_certain_tokens(kind: str):
    """Masses that sum to 1 or a little above: the rest rounds to 0 or below, on one side or on both."""
    log_prob = torch.tensor([-1e-9, 0.0, -1e-9, -1e-7, -1e-3])
    old = torch.tensor([0.0, -1e-9, -1e-9, -2e-7, -1e-3 + 1e-6])
    listed = torch.tensor([[-16.0], [-16.0], [-17.0], [-16.0], [math.log(1e-3)]])
    value = topk.TOPK[kind](listed + 0.1, listed, log_prob, old)
    assert value.isfinite().all() and (value >= 0).all() and (value < 1e-4).all()


def test_impossible_tokens():
    """A listed token that pi gives probability 0 costs its mass in TV and IMPOSSIBLE in KL, as the sampled one does."""
    gone, half = torch.tensor([[-torch.inf]]), torch.tensor([[math.log(0.5)]])
    assert topk.topk_tv(gone, half, torch.tensor([0.0]), half[0]).item() == pytest.approx(0.5)
    assert topk.topk_kl(gone, half, torch.tensor([0.0]), half[0]).item() == IMPOSSIBLE
    assert topk.topk_kl(half, half, gone[0], half[0]).item() == IMPOSSIBLE


# ---- coding


def test_decoded_log_probs_are_within_the_stated_error():
    log_probs = -torch.logspace(-9, math.log10(64), 20_000, dtype=torch.float64)
    ends = topk.decode_log_probs(topk.encode_log_probs(torch.tensor([0.0, -100.0, -torch.inf])))
    assert ends.tolist() == [0.0, pytest.approx(-64, rel=1e-4), -torch.inf]
    decoded = topk.decode_log_probs(topk.encode_log_probs(log_probs)).double()
    allowed = (-log_probs).sqrt() / topk.STEPS + 0.25 / topk.STEPS**2 + 2e-7 * -log_probs
    assert ((decoded - log_probs).abs() <= allowed).all()


@pytest.mark.parametrize(("kind", "k"), [("tv", 20), ("kl", 5)])
def test_packing_and_back(kind: str, k: int):
    policies = Policies(10, k)
    packed = topk.pack(policies.ids, policies.listed, policies.sampled_ids, policies.sampled[1])
    assert packed.dtype == torch.int16
    assert packed.numel() * 2 <= 400 * (6 * k + 4) + 4
    ids, log_mu, rest = topk.unpack(packed, k)
    for row, listed in enumerate(log_mu > -torch.inf):
        assert set(ids[row][listed].tolist()) == set(policies.ids[row].tolist()) - {int(policies.sampled_ids[row])}
    coded = topk.TOPK[kind](policies.log_pi.gather(-1, ids), log_mu, *policies.sampled, rest)
    within = {"rtol": 0, "atol": topk.tv_coding_bound(k) + 1e-6} if kind == "tv" else {"rtol": 1e-2, "atol": 5e-6}
    torch.testing.assert_close(coded, policies.divergence(kind), check_dtype=False, **within)
    assert kind == "kl" or (binary_tv(*policies.sampled) <= coded).all()


def test_a_cutoff_gives_up_a_bounded_part():
    policies = Policies(12, 10)
    whole = topk.pack(policies.ids, policies.listed, policies.sampled_ids, policies.sampled[1])
    packed = topk.pack(policies.ids, policies.listed, policies.sampled_ids, policies.sampled[1], cutoff=0.01)
    assert packed.numel() < 0.8 * whole.numel()
    ids, kept, rest = topk.unpack(packed, 10)
    assert (kept[kept > -torch.inf] >= math.log(0.01) - 1e-3).all()
    cut, full = topk.topk_tv(policies.log_pi.gather(-1, ids), kept, *policies.sampled, rest), policies.divergence("tv")
    assert (binary_tv(*policies.sampled) <= cut).all() and (cut <= full + topk.tv_coding_bound(10)).all()
    dropped = (policies.listed < math.log(0.01)) & (policies.ids != policies.sampled_ids.unsqueeze(-1))
    largest = torch.maximum(policies.listed, policies.log_pi.gather(-1, policies.ids)).exp()
    assert (full - cut <= (largest * dropped).sum(-1) + topk.tv_coding_bound(10)).all()


def test_large_ids_at_any_storage_offset_and_tokens_without_entries():
    ids = torch.tensor([[0, 65_535, 65_536], [151_935, 32_768, 2**31 - 1], [1, 2, 3]])
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-3.0, -1.0, -2.0], [-torch.inf] * 3])
    packed = topk.pack(ids, log_probs, torch.tensor([7, 7, 7]), torch.tensor([-2.0, -2.5, -0.5]))
    for offset in (0, 1):
        moved = torch.cat([torch.zeros(offset, dtype=torch.int16), packed])[offset:]
        got, log_mu, rest = topk.unpack(moved, 3)
        assert torch.equal(got[:2], ids[:2]) and (log_mu[2] == -torch.inf).all()
        assert rest[2].item() == pytest.approx(1 - math.exp(-0.5), rel=1.3e-4)
    with pytest.raises(ValueError, match="3 entries at a token, more than topk=2"):
        topk.unpack(packed, 2)


def test_an_empty_response():
    none = torch.zeros((0, 4))
    ids, log_mu, rest = topk.unpack(topk.pack(none.long(), none, torch.zeros(0).long(), torch.zeros(0)), 4)
    assert ids.shape == log_mu.shape == (0, 4) and rest.shape == (0,)
