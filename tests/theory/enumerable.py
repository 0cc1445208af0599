"""Autoregressive models small enough to sum over every sequence, in float64.

A policy is a tuple of T conditional tables; table t (from 0) is (batch, V**t, V), a row for each prefix of t tokens.
Prefixes and sequences are numbered in base V, first token most significant. ``batch`` runs over random instances.
Nothing here uses the formulas under test: each quantity is the sum in its definition.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Tables = tuple[Tensor, ...]


def law(tables: Tables) -> Tensor:
    """Probability of every sequence that the tables generate, (batch, rows of the first table * V**len)."""
    batch, rows, _ = tables[0].shape
    probability = tables[0].new_ones((batch, rows))
    for table in tables:
        probability = (probability.unsqueeze(-1) * table).flatten(1)
    return probability


def per_token(tables: Tables) -> Tensor:
    """The tables' entry at each token of every sequence, (batch, V**T, T)."""
    vocabulary, horizon = tables[0].shape[-1], len(tables)
    columns = [x.flatten(1).repeat_interleave(vocabulary ** (horizon - t - 1), 1) for t, x in enumerate(tables)]
    return torch.stack(columns, dim=-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    return 0.5 * (p - q).abs().sum(-1)


@dataclass(frozen=True)
class Pair:
    """Rollout policy mu and trained policy pi over the same sequences."""

    mu: Tables
    pi: Tables

    @property
    def horizon(self) -> int:
        return len(self.mu)

    @property
    def vocabulary(self) -> int:
        return self.mu[0].shape[-1]

    @cached_property
    def law(self) -> Tensor:
        """mu's probability of every sequence, (batch, V**T)."""
        return law(self.mu)

    @cached_property
    def ratio(self) -> Tensor:
        """rho_t of every sequence, (batch, V**T, T)."""
        return per_token(tuple(pi / mu for mu, pi in zip(self.mu, self.pi, strict=True)))

    @cached_property
    def divergence(self) -> Tables:
        """D_t of every state: T tensors, (batch, V**t)."""
        return tuple(total_variation(mu, pi) for mu, pi in zip(self.mu, self.pi, strict=True))

    @cached_property
    def mean_divergence(self) -> Tensor:
        """u_t = E_mu[D_t], (batch, T)."""
        return torch.stack([(self.state_law(t) * d).sum(-1) for t, d in enumerate(self.divergence)], dim=-1)

    @cached_property
    def largest_divergence(self) -> Tensor:
        """max over states of D_t, (batch, T)."""
        return torch.stack([d.amax(-1) for d in self.divergence], dim=-1)

    def state_law(self, t: int) -> Tensor:
        """mu's probability of every prefix of t tokens, (batch, V**t)."""
        return law(self.mu[:t]) if t else self.mu[0].new_ones((self.mu[0].shape[0], 1))

    def improvement(self, reward: Tensor) -> Tensor:
        """J(pi) - J(mu) from the two laws, (batch,)."""
        return ((law(self.pi) - self.law) * reward).sum(-1)

    def along_paths(self, values: Tables) -> Tensor:
        """A value at each state, spread over the sequences through it: (batch, V**T, T)."""
        columns = [v.repeat_interleave(self.vocabulary ** (self.horizon - t), dim=1) for t, v in enumerate(values)]
        return torch.stack(columns, dim=-1)


def random_pair(seed: int, batch: int, vocabulary: int, horizon: int, spread: float = 1.0) -> Pair:
    """mu and pi with independent logits of standard deviation ``spread``."""
    generator = torch.Generator().manual_seed(seed)

    def tables() -> Tables:
        shapes = [(batch, vocabulary**t, vocabulary) for t in range(horizon)]
        return tuple((spread * torch.randn(s, generator=generator, dtype=torch.float64)).softmax(-1) for s in shapes)

    return Pair(tables(), tables())


def random_reward(pair: Pair, xi: float, seed: int) -> Tensor:
    """Uniform in [-xi, xi], (batch, V**T)."""
    generator = torch.Generator().manual_seed(seed)
    return xi * (2 * torch.rand(pair.law.shape, generator=generator, dtype=torch.float64) - 1)


def mix(pair: Pair, t: int, share: Tensor) -> Pair:
    """pi moved toward mu at step t: pi_t = mu_t + share (pi_t - mu_t), which multiplies D_t by share, (batch, V**t)."""
    table = pair.mu[t] + share.unsqueeze(-1) * (pair.pi[t] - pair.mu[t])
    return Pair(pair.mu, (*pair.pi[:t], table, *pair.pi[t + 1 :]))


def cap_divergence(pair: Pair, t: int, cap: Tensor) -> Pair:
    """pi mixed toward mu until D_t <= cap, (batch, V**t) or broadcastable to it."""
    return mix(pair, t, (cap / pair.divergence[t]).clamp_max(1.0))


def set_divergence(pair: Pair, t: int, value: float) -> Pair:
    """D_t = value at every state of step t; needs D_t >= value beforehand."""
    assert bool((pair.divergence[t] >= value).all())
    return mix(pair, t, value / pair.divergence[t])


def project_in_expectation(pair: Pair, weights: Tensor, thresholds: Tensor, delta_b: float) -> Pair:
    """pi mixed toward mu until Theorem 1's constraints hold: w_t D_t <= c_t, and P_m <= delta_b W_m for m < T."""
    spent = torch.zeros(pair.mu[0].shape[0], dtype=torch.float64)
    for t in range(pair.horizon):
        pair = cap_divergence(pair, t, thresholds[t] / weights[t])
        if t == pair.horizon - 1:
            break
        left = delta_b * weights[: t + 1].sum() - spent
        share = (left / (weights[t] * pair.mean_divergence[:, t])).clamp_max(1.0)
        pair = mix(pair, t, share.unsqueeze(-1).expand_as(pair.divergence[t]))
        spent = spent + weights[t] * pair.mean_divergence[:, t]
    return pair


def deviating_pair(on_path: list[float], off_path: list[float], rare: float = 1e-9) -> Pair:
    """The family in which the bounds become equalities as the divergences go to 0; one instance, vocabulary 3.

    At a state of divergence d, mu = (d, rare, 1 - d - rare) and pi = (0, d + rare, 1 - d - rare): the last token
    changes nothing, the other two are deviations in which mu and pi hardly overlap. ``on_path`` are the D_t of states
    without a deviation before them, ``off_path`` of the others.
    """
    mu, pi = [], []
    deviated = torch.zeros(1, dtype=torch.bool)
    for on, off in zip(on_path, off_path, strict=True):
        d = torch.where(deviated, torch.tensor(off, dtype=torch.float64), torch.tensor(on, dtype=torch.float64))
        rest = 1 - d - rare
        mu.append(torch.stack([d, torch.full_like(d, rare), rest], dim=-1).unsqueeze(0))
        pi.append(torch.stack([torch.zeros_like(d), d + rare, rest], dim=-1).unsqueeze(0))
        deviated = torch.stack([torch.ones_like(deviated), torch.ones_like(deviated), deviated], dim=-1).flatten()
    return Pair(tuple(mu), tuple(pi))


def saturating_pair(means: list[float], token_bound: float, rare: float = 1e-9) -> Pair:
    """``deviating_pair`` with the given u_t, t < T, met exactly, and D_t = token_bound off the path and at t = T.

    T is one more than the number of means. Each u_t must be at least token_bound times the sum of those before it.
    """
    on_path, undeviated = [], 1.0
    for mean in means:
        on_path.append((mean - token_bound * (1 - undeviated)) / undeviated)
        undeviated *= 1 - on_path[-1] - rare
    assert min(on_path) > 0
    return deviating_pair([*on_path, token_bound], [token_bound] * (len(means) + 1), rare)
