"""Gates that pull back and the forward trace, on the enumerable model: every expectation is a sum over all y."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cppo_verl.trust_region import trace
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.loss import coefficients
from cppo_verl.trust_region.rules import evaluate
from cppo_verl.trust_region.schedule import linear_weights
from cppo_verl.trust_region.tokens import Tokens
from tests.theory.enumerable import Pair, per_token, random_pair, random_reward

VOCABULARY, HORIZON, BATCH, UPDATES = 3, 4, 12, 40
KNOBS = {"delta": 0.15, "delta_b": 0.02, "budget": "fixed", "estimator": "topk", "ratio_cap": 1e6}


# ---- does a restoring gate keep pi nearer its region?


def tokens_of(pair: Pair, advantages: Tensor) -> Tokens:
    """Every sequence of every instance as a row, (batch * V**T, T)."""
    old = per_token(tuple(table.log() for table in pair.mu))
    ones = torch.ones_like(old)
    rows = (x.flatten(0, 1) for x in (old + pair.ratio.log(), old, advantages.unsqueeze(-1) * ones, ones))
    return Tokens.of(*rows)


def train(rule: str, rate: float = 2.0, **knobs) -> tuple[float, float]:
    """pi from mu by exact ascent on the gated surrogate; means of the largest w_t D_t / delta and P / (delta_b W)."""
    start = random_pair(7, BATCH, VOCABULARY, HORIZON)
    reward = random_reward(start, 1.0, 8)
    advantages = reward - (start.law * reward).sum(-1, keepdim=True)
    logits = [p.log().clone().requires_grad_() for p in start.mu]
    chosen = TrustRegionKnobs(**KNOBS, **knobs)
    for _ in range(UPDATES):
        pair = Pair(start.mu, tuple(x.detach().softmax(-1) for x in logits))
        tokens = tokens_of(pair, advantages)
        verdict, _ = evaluate(rule, tokens, chosen, pair.along_paths(pair.divergence).flatten(0, 1))
        coefficient = coefficients(tokens, verdict, chosen.ratio_cap).view(BATCH, -1, HORIZON)
        log_pi = per_token(tuple(x.log_softmax(-1) for x in logits))
        loss = (start.law.unsqueeze(-1) * coefficient * log_pi).sum()
        for x, gradient in zip(logits, torch.autograd.grad(loss, logits), strict=True):
            x.data -= rate * gradient
    end = Pair(start.mu, tuple(x.detach().softmax(-1) for x in logits))
    weights = linear_weights(torch.ones(1, HORIZON, dtype=torch.bool), chosen.w_min, torch.float64)[0]
    token = (weights * end.largest_divergence).amax(-1) / chosen.delta
    spent = (weights * end.mean_divergence).cumsum(-1) / (chosen.delta_b * weights.cumsum(-1))
    return float(token.mean()), float(spent[:, :-1].amax(-1).mean())


@pytest.mark.parametrize("rule", ["cppo", "dppo"])
def test_restoring_keeps_pi_nearer_its_region(rule: str):
    """With the hard mask pi ends outside; the pull brings back both the token and the prefix excess."""
    hard, restored = train(rule), train(rule, gate="restore", restore_strength=1.0)
    assert hard[0] > 1 and hard[1] > 1
    assert restored[0] < hard[0] and restored[1] < hard[1]


# ---- the forward trace with N = T


def check_trace(of: Callable[[Tokens, int], Tensor]) -> None:
    """N = T: exact improvement."""
    pair = random_pair(3, 16, VOCABULARY, HORIZON)
    reward = random_reward(pair, 1.0, 4)
    tokens = tokens_of(pair, reward)
    weight = of(tokens, HORIZON).view(16, -1, HORIZON)
    terms = pair.law.unsqueeze(-1) * reward.unsqueeze(-1) * (pair.ratio - 1) * weight
    torch.testing.assert_close(terms.sum((-2, -1)), pair.improvement(reward), rtol=1e-10, atol=1e-12)


def test_a_trace_of_all_later_tokens_is_exact():
    check_trace(trace.forward_trace)


TRACES: dict[str, Callable[[Tokens, int], Tensor]] = {
    "one token short": lambda tokens, n: trace.forward_trace(tokens, n - 1),
    "with its own ratio": lambda tokens, n: trace.forward_trace(tokens, n) * tokens.ratio,
}


@pytest.mark.parametrize("wrong", sorted(TRACES))
def test_a_wrong_trace_is_caught(wrong: str):
    with pytest.raises(AssertionError):
        check_trace(TRACES[wrong])
