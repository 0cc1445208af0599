"""What several test files share: random batches, the reference's decisions on them, calls of registered losses."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import position_weights
from cppo_verl.trust_region.tokens import Tokens
from tests import reference
from tests.reference import Response


@dataclass
class Batch:
    """(rows, width) tensors; what stands at invalid positions is arbitrary but finite."""

    log_prob: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mask: Tensor

    def to(self, dtype: torch.dtype) -> "Batch":
        return Batch(self.log_prob.to(dtype), self.old_log_prob.to(dtype), self.advantages.to(dtype), self.mask)

    def rows(self, index) -> "Batch":
        return Batch(self.log_prob[index], self.old_log_prob[index], self.advantages[index], self.mask[index])

    def tokens(self) -> Tokens:
        return Tokens.of(self.log_prob, self.old_log_prob, self.advantages, self.mask)

    def responses(self) -> Iterator[Response]:
        """The rows as float64 lists, for the reference."""
        columns = [x.double().tolist() for x in (self.log_prob, self.old_log_prob, self.advantages)]
        for log_pi, log_mu, advantages, valid in zip(*columns, self.mask.bool().tolist(), strict=True):
            yield Response(log_pi, log_mu, advantages, valid)


def batch_of(log_prob, old_log_prob, advantages, mask, dtype: torch.dtype = torch.float64) -> Batch:
    """A batch from nested lists; ``mask`` holds 0 and 1."""
    tensors = [torch.tensor(x, dtype=dtype) for x in (log_prob, old_log_prob, advantages)]
    return Batch(*tensors, torch.tensor(mask))


def random_mask(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Padding on either side, holes in half of the rows, some rows empty, full, or of one token."""
    mask = np.zeros((rows, width), dtype=np.int64)
    for row in range(rows):
        start, stop = sorted(rng.integers(0, width + 1, size=2))
        mask[row, start:stop] = 1
        kind = rng.random()
        if kind < 0.5:
            mask[row] *= rng.random(width) > 0.25
        elif kind < 0.53:
            mask[row] = 0
        elif kind < 0.56:
            mask[row] = np.arange(width) == rng.integers(width)
        elif kind < 0.7:
            mask[row] = 1
    return mask


def random_batch(seed: int, rows: int, width: int, per_token_advantage: bool = False) -> Batch:
    """A float64 batch in which every clause of every rule decides some tokens.

    Half of the tokens are confident (p near 1); the drift of pi from mu differs from row to row, 0.003 to 1 in the
    log-ratio. One row in ten has advantage 0.
    """
    rng = np.random.default_rng(seed)
    shape = (rows, width)
    confident = -(10.0 ** rng.uniform(-5, -1, shape))
    old_log_prob = np.where(rng.random(shape) < 0.5, confident, -rng.exponential(1.5, shape) - 1e-4)
    drift = 10.0 ** rng.uniform(-2.5, 0, (rows, 1))
    log_prob = np.minimum(old_log_prob * np.exp(rng.normal(0, drift, shape)) + rng.normal(0, drift, shape), -1e-7)
    advantages = rng.normal(0, 1, shape if per_token_advantage else (rows, 1)) * np.ones(shape)
    advantages[rng.random(rows) < 0.1] = 0
    return Batch(
        torch.from_numpy(log_prob),
        torch.from_numpy(old_log_prob),
        torch.from_numpy(advantages),
        torch.from_numpy(random_mask(rng, rows, width)),
    )


def reference_weights(batch: Batch, knobs: TrustRegionKnobs) -> list[list[float]]:
    """w_t by loop. A shuffle is taken from the package, once it is known to be a permutation of the loop's weights."""
    valid = batch.mask.bool().tolist()
    if knobs.weights == "constant":
        return [[float(ok) for ok in row] for row in valid]
    if knobs.horizon == "response":
        weights = [reference.linear_weights(row, knobs.w_min) for row in valid]
    else:
        weights = [reference.linear_weights_by_column(row, knobs.w_min, knobs.max_response_length) for row in valid]
    if knobs.weights == "shuffled":
        mixed = position_weights(batch.tokens(), knobs).double().tolist()
        for row, other in zip(weights, mixed, strict=True):
            assert sorted(other) == pytest.approx(sorted(row), abs=1e-6)
        return mixed
    return weights


def decide(batch: Batch, knobs: TrustRegionKnobs) -> list[dict[int, reference.Decision]]:
    """Algorithm 1 on the float64 values of the batch, row by row."""
    decisions = []
    for response, weights in zip(batch.responses(), reference_weights(batch, knobs), strict=True):
        delta_b: float | None = knobs.delta_b
        if knobs.budget == "none":
            delta_b = None
        elif knobs.budget == "quantile":
            values = response.divergences(knobs.divergence)
            q, scale, cap = knobs.budget_quantile, knobs.budget_scale, knobs.budget_cap
            delta_b = reference.quantile_budget(values, knobs.delta_b, q, scale, cap)
        decisions.append(reference.algorithm_1(response, knobs.divergence, weights, knobs.delta, delta_b))
    return decisions


def actor_config(global_batch_info: dict | None = None, **knobs):
    """verl's ActorConfig holding our typed knobs."""
    from verl.workers.config import ActorConfig

    from cppo_verl.integration.config import TrustRegionLossConfig

    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        policy_loss=TrustRegionLossConfig(**knobs),
        global_batch_info=global_batch_info or {},
    )


def run_loss(name: str, batch: Batch, config, mode: str = "token-mean", **more) -> tuple[Tensor, Tensor, dict]:
    """Loss, gradient in ``log_prob`` and metrics of the loss that verl's registry holds under ``name``."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    log_prob = batch.log_prob.clone().requires_grad_()
    loss, reported = get_policy_loss_fn(name)(
        old_log_prob=batch.old_log_prob,
        log_prob=log_prob,
        advantages=batch.advantages,
        response_mask=batch.mask,
        loss_agg_mode=mode,
        config=config,
        **more,
    )
    loss.backward()
    assert log_prob.grad is not None
    return loss.detach(), log_prob.grad, reported
