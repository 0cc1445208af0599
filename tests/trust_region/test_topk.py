"""The top-K divergence: by hand, against the full vocabulary, at the edges of float32, and through its coding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cppo_verl.trust_region import topk
from cppo_verl.trust_region.divergence import BINARY, IMPOSSIBLE, binary_tv, full_kl, full_tv

FULL = {"tv": full_tv, "kl": full_kl}
KINDS = ["tv", "kl"]


class Policies:
    """Random mu and pi over a vocabulary, sampled tokens of mu, and mu's top-K."""

    def __init__(self, seed: int, k: int, vocabulary: int = 24, tokens: int = 400, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        peaked = torch.logspace(-1, 1.2, tokens).unsqueeze(-1)
        drift = torch.logspace(-3, 0.5, tokens)[torch.randperm(tokens, generator=generator)].unsqueeze(-1)
        self.mu_logits = peaked * torch.randn(tokens, vocabulary, generator=generator)
        self.pi_logits = self.mu_logits + drift * torch.randn(tokens, vocabulary, generator=generator)
        self.log_mu = self.mu_logits.to(dtype).log_softmax(-1)
        self.log_pi = self.pi_logits.to(dtype).log_softmax(-1)
        self.sampled_ids = torch.multinomial(self.log_mu.exp(), 1, generator=generator).squeeze(-1)
        self.ids = self.log_mu.topk(min(k, vocabulary)).indices

    def at(self, log_probs: Tensor, ids: Tensor) -> Tensor:
        return log_probs.gather(-1, ids)

    @property
    def sampled(self) -> tuple[Tensor, Tensor]:
        index = self.sampled_ids.unsqueeze(-1)
        return self.at(self.log_pi, index).squeeze(-1), self.at(self.log_mu, index).squeeze(-1)

    def listed(self, log_probs: Tensor) -> Tensor:
        return topk.without_sampled(self.at(log_probs, self.ids), self.ids, self.sampled_ids)

    def topk(self, kind: str, log_pi: Tensor | None = None) -> Tensor:
        return topk.TOPK[kind](self.at(self.log_pi, self.ids), self.listed(self.log_mu), *self.sampled)

    def taken_by_the_floor(self) -> Tensor:
        """What REST_FLOOR can take off the KL at most: the two terms of ``topk_kl``."""
        laws = zip((self.log_pi, self.log_mu), self.sampled, strict=True)
        pi_rest, mu_rest = (topk.rest_mass(self.listed(law), sampled) for law, sampled in laws)
        shortfall = (topk.REST_FLOOR / pi_rest.clamp_min(1e-300)).clamp_min(1).log()
        return mu_rest * shortfall + topk.REST_FLOOR * (1 - math.log(topk.REST_FLOOR))

    def by_categories(self, kind: str) -> Tensor:
        """The same from the definition, token by token, in float64."""
        values = []
        for p, q, ids, y in zip(
            self.log_mu.double().exp(), self.log_pi.double().exp(), self.ids, self.sampled_ids, strict=True
        ):
            listed = sorted({*ids.tolist(), int(y)})
            others = [i for i in range(len(p)) if i not in listed]
            p_c = torch.cat([p[listed], p[others].sum(0, keepdim=True)])
            q_c = torch.cat([q[listed], q[others].sum(0, keepdim=True)])
            if kind == "kl":
                p_c[-1], q_c[-1] = p_c[-1].clamp_min(topk.REST_FLOOR), q_c[-1].clamp_min(topk.REST_FLOOR)
                values.append((q_c - p_c + torch.where(p_c > 0, p_c * (p_c / q_c).log(), 0.0)).sum())
            else:
                values.append(0.5 * (q_c - p_c).abs().sum())
        return torch.stack(values)


# ---- by hand

MU = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
PI = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sampled", "mu_categories", "pi_categories", "tv"),
    [
        (0, [0.5, 0.3, 0.2], [0.4, 0.3, 0.3], 0.1),  # among mu's top 2: 1/2 (0.1 + 0 + 0.1)
        (3, [0.5, 0.3, 0.05, 0.15], [0.4, 0.3, 0.1, 0.2], 0.1),  # outside: 1/2 (0.1 + 0 + 0.05 + 0.05)
        (2, [0.5, 0.3, 0.15, 0.05], [0.4, 0.3, 0.2, 0.1], 0.1),
    ],
)
def test_two_of_four_tokens_by_hand(sampled: int, mu_categories: list, pi_categories: list, tv: float):
    ids = torch.tensor([0, 1])
    log_mu = topk.without_sampled(MU[ids].log(), ids, torch.tensor(sampled))
    arguments = (PI[ids].log(), log_mu, PI[sampled].log(), MU[sampled].log())
    assert topk.topk_tv(*arguments).item() == pytest.approx(tv, abs=1e-12)
    kl = sum(p * math.log(p / q) for p, q in zip(mu_categories, pi_categories, strict=True))
    assert topk.topk_kl(*arguments).item() == pytest.approx(kl, abs=1e-12)
    rest = 1 - sum(MU[i].item() for i in {0, 1, sampled})
    assert topk.rest_mass(log_mu, MU[sampled].log()).item() == pytest.approx(rest, abs=1e-12)


# ---- between binary and full


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 24))
def test_binary_topk_full(kind: str, seed: int, k: int):
    exact = Policies(seed, k, tokens=60, dtype=torch.float64)
    value, full = exact.topk(kind), FULL[kind](exact.log_pi, exact.log_mu)
    taken, rounding = (0, 1e-12) if kind == "tv" else (exact.taken_by_the_floor(), 1e-10)
    assert (BINARY[kind](*exact.sampled) <= value + taken).all()
    assert (value <= full + rounding).all()
    torch.testing.assert_close(value, exact.by_categories(kind), rtol=1e-9, atol=1e-12)
    rounded = Policies(seed, k, tokens=60).topk(kind)
    # KL divides by pi's rest, which float32 knows to 1e-7: a tenth of the floor
    tolerance = {"rtol": 2e-5, "atol": 3e-6} if kind == "tv" else {"rtol": 0.1, "atol": 3e-6}
    torch.testing.assert_close(rounded.double(), value, **tolerance)
    if kind == "tv":
        assert (binary_tv(*Policies(seed, k, tokens=60).sampled) <= rounded).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5, 24])
def test_identical_policies_are_exactly_apart_by_nothing(kind: str, k: int):
    policies = Policies(5, k)
    policies.log_pi = policies.log_mu
    assert (policies.topk(kind) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_listed_is_binary(kind: str):
    policies = Policies(6, 3)
    nothing = torch.full((400, 3), -torch.inf)
    value = topk.TOPK[kind](torch.randn(400, 3), nothing, *policies.sampled)
    sampled = [x.double() for x in policies.sampled]
    torch.testing.assert_close(value.double(), BINARY[kind](*sampled), rtol=1e-4, atol=1e-5)


# ---- where float32 ends


@pytest.mark.parametrize("kind", KINDS)
def test_certain_tokens(kind: str):
    """Masses that sum to 1 or a little above: the rest rounds to 0 or below, on one side or on both."""
    log_prob = torch.tensor([-1e-9, 0.0, -1e-9, -1e-7, -1e-3])
    old = torch.tensor([0.0, -1e-9, -1e-9, -2e-7, -1e-3 + 1e-6])
    listed = torch.tensor([[-16.0], [-16.0], [-17.0], [-16.0], [math.log(1e-3)]])
    value = topk.TOPK[kind](listed + 0.1, listed, log_prob, old)
    assert value.isfinite().all() and (value >= 0).all() and (value < 1e-4).all()


def test_a_vanished_rest_stays_finite():
    """mu leaves 1e-3 to the rest, pi nothing: it costs q - p + p log(p/q) with q at the floor; the sampled token is
    unchanged and the listed one goes from 0.499 to 0.5."""
    half = torch.tensor([math.log(0.5)])
    value = topk.topk_kl(half.unsqueeze(0), torch.tensor([[math.log(0.499)]]), half, half).item()
    rest = topk.REST_FLOOR - 1e-3 + 1e-3 * math.log(1e-3 / topk.REST_FLOOR)
    assert value == pytest.approx(rest + 1e-3 + 0.499 * math.log(0.499 / 0.5), rel=1e-3)


def test_impossible_tokens():
    """A listed token that pi gives probability 0 costs its mass in TV and IMPOSSIBLE in KL, as the sampled one does."""
    gone, half = torch.tensor([[-torch.inf]]), torch.tensor([[math.log(0.5)]])
    assert topk.topk_tv(gone, half, torch.tensor([0.0]), half[0]).item() == pytest.approx(0.5)
    assert topk.topk_kl(gone, half, torch.tensor([0.0]), half[0]).item() == IMPOSSIBLE
    assert topk.topk_kl(half, half, gone[0], half[0]).item() == IMPOSSIBLE


def test_log_probs_from_logits_and_the_sampled_log_prob():
    policies = Policies(7, 5, dtype=torch.float64)
    logits = policies.pi_logits.double() + 1000.0  # a normaliser far from 0
    sampled = policies.at(logits, policies.sampled_ids.unsqueeze(-1)).squeeze(-1)
    found = topk.log_probs_at(policies.at(logits, policies.ids), sampled, policies.sampled[0])
    torch.testing.assert_close(found, policies.at(policies.log_pi, policies.ids), rtol=1e-9, atol=1e-9)


# ---- coding


def test_decoded_log_probs_are_within_the_stated_error():
    log_probs = -torch.logspace(-9, math.log10(64), 20_000, dtype=torch.float64)
    ends = topk.decode_log_probs(topk.encode_log_probs(torch.tensor([0.0, -100.0, -torch.inf])))
    assert ends.tolist() == [0.0, pytest.approx(-64, rel=1e-4), -torch.inf]
    decoded = topk.decode_log_probs(topk.encode_log_probs(log_probs)).double()
    allowed = (-log_probs).sqrt() / topk.STEPS + 0.25 / topk.STEPS**2 + 2e-7 * -log_probs
    assert ((decoded - log_probs).abs() <= allowed).all()
    assert ((decoded - log_probs).abs() > 0.9 * (-log_probs).sqrt() / topk.STEPS).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_packing_and_back(kind: str, k: int):
    policies = Policies(10, k)
    packed = topk.pack(
        policies.ids, policies.at(policies.log_mu, policies.ids), policies.sampled_ids, policies.sampled[1]
    )
    assert packed.dtype == torch.int16
    assert packed.numel() * 2 <= 400 * (6 * k + 4) + 4
    ids, log_mu, rest = topk.unpack(packed, k)
    listed = log_mu > -torch.inf
    for row in range(400):
        assert set(ids[row][listed[row]].tolist()) == set(policies.ids[row].tolist()) - {int(policies.sampled_ids[row])}
    coded = topk.TOPK[kind](policies.at(policies.log_pi, ids), log_mu, *policies.sampled, rest)
    if kind == "tv":
        assert (coded - policies.topk(kind)).abs().max() <= topk.tv_coding_bound(k) + 1e-6
    else:
        torch.testing.assert_close(coded, policies.topk(kind), rtol=1e-2, atol=5e-6)
    assert (BINARY["tv"](*policies.sampled) <= coded).all() if kind == "tv" else (coded >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cutoff_gives_up_a_bounded_part(kind: str):
    policies = Policies(12, 10)
    log_mu = policies.at(policies.log_mu, policies.ids)
    whole = topk.pack(policies.ids, log_mu, policies.sampled_ids, policies.sampled[1])
    packed = topk.pack(policies.ids, log_mu, policies.sampled_ids, policies.sampled[1], cutoff=0.01)
    assert packed.numel() < 0.8 * whole.numel()
    ids, kept, rest = topk.unpack(packed, 10)
    assert (kept[kept > -torch.inf] >= math.log(0.01) - 1e-3).all()
    cut = topk.TOPK[kind](policies.at(policies.log_pi, ids), kept, *policies.sampled, rest)
    assert (BINARY[kind](*policies.sampled) <= cut + (0 if kind == "tv" else 1e-4)).all()
    full = policies.topk(kind)
    assert (cut <= full * (1 + 2e-3) + topk.tv_coding_bound(10)).all()
    if kind == "tv":
        dropped = (log_mu < math.log(0.01)) & (policies.ids != policies.sampled_ids.unsqueeze(-1))
        largest = torch.maximum(log_mu, policies.at(policies.log_pi, policies.ids)).exp()
        assert (full - cut <= (largest * dropped).sum(-1) + topk.tv_coding_bound(10)).all()


def test_large_ids_survive_at_any_storage_offset():
    ids = torch.tensor([[0, 65_535, 65_536], [151_935, 32_768, 2**31 - 1]])
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-3.0, -1.0, -2.0]])
    packed = topk.pack(ids, log_probs, torch.tensor([7, 7]), torch.tensor([-2.0, -2.5]))
    for offset in (0, 1):
        moved = torch.cat([torch.zeros(offset, dtype=torch.int16), packed])[offset:]
        assert torch.equal(topk.unpack(moved, 3)[0], ids)


def test_empty_response_and_tokens_without_entries():
    none = torch.zeros((0, 4))
    ids, log_mu, rest = topk.unpack(topk.pack(none.long(), none, torch.zeros(0).long(), torch.zeros(0)), 4)
    assert ids.shape == log_mu.shape == (0, 4) and rest.shape == (0,)
    absent = torch.full((2, 4), -torch.inf)
    packed = topk.pack(torch.zeros(2, 4).long(), absent, torch.tensor([3, 3]), torch.tensor([-0.5, 0.0]))
    _, log_mu, rest = topk.unpack(packed, 4)
    assert (log_mu == -torch.inf).all()
    assert rest.tolist() == [pytest.approx(1 - math.exp(-0.5), rel=1.3e-4), 0.0]


def test_damage_is_named():
    ids, log_probs = torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]])
    packed = topk.pack(ids, log_probs, torch.tensor([0]), torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="damaged"):
        topk.unpack(packed[:-1], 2)
    with pytest.raises(ValueError, match="damaged"):
        topk.unpack(packed[:1], 2)
    with pytest.raises(ValueError, match="more than topk=1"):
        topk.unpack(packed, 1)
    with pytest.raises(ValueError, match="do not belong together"):
        topk.pack(ids, log_probs, torch.tensor([0, 1]), torch.tensor([-1.0, -1.0]))
