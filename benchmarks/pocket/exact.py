"""What the branching task lets one know: J, every prefix's divergence, and Theorem 1's terms (arXiv 2606.10968)."""

import torch
from torch import Tensor

from benchmarks.pocket.tasks import Branch
from cppo_verl.trust_region import bound
from cppo_verl.trust_region.divergence import full_tv
from cppo_verl.trust_region.schedule import linear_weights

XI = 0.5  # half the range of R


def law(tables: list[Tensor], branches: int) -> Tensor:
    """Probability of every response over branch symbols, (contexts, branches ** length); others have reward 0."""
    probability = tables[0].new_ones(tables[0].shape[0], 1)
    for table in tables:
        probability = (probability.unsqueeze(-1) * table[..., :branches]).flatten(1)
    return probability


def expected_reward(task: Branch, tables: list[Tensor]) -> float:
    """J, mean over contexts."""
    return float((law(tables, task.branches) * task.rewards()).sum(-1).mean())


def compare(task: Branch, mu: list[Tensor], pi: list[Tensor], delta: float, delta_b: float, w_min: float) -> dict:
    """Facts about pi against the law mu that sampled, means over contexts unless said.

    ``gap`` is Delta = L' - (J(pi) - J(mu)) of Lemma 2, ``residual`` Theorem 1's bound of it at the given thresholds,
    ``gap_bound`` that of Proposition 4 at the divergences found. ``token_excess`` is the largest w_t D_t / delta over
    all prefixes and contexts, ``prefix_excess`` the largest P_m / (delta_b W_m) over m < T: above 1 the trust region
    is violated. Responses outside the branch symbols have R = 0 and add nothing to L'.
    """
    branches, length = task.branches, task.length
    probability, rewards = law(mu, branches), task.rewards()
    divergence = [full_tv(q.log(), p.log()) for p, q in zip(mu, pi, strict=True)]
    ratio = [
        (q / p)[..., :branches].flatten(1).repeat_interleave(branches ** (length - t - 1), 1)
        for t, (p, q) in enumerate(zip(mu, pi, strict=True))
    ]
    surrogate = (probability * rewards * bound.surrogate_terms(torch.stack(ratio, -1))).sum(-1)
    improvement = ((law(pi, branches) - probability) * rewards).sum(-1)
    reach = [law(mu[:t], branches) if t else torch.ones_like(divergence[0]) for t in range(length)]
    mean_divergence = torch.stack([(r * d).sum(-1) for r, d in zip(reach, divergence, strict=True)], -1)
    largest = torch.stack([d.amax(-1) for d in divergence], -1)
    weights = linear_weights(torch.ones(1, length, dtype=torch.bool), w_min, torch.float64)[0]
    spent, allowed = (weights * mean_divergence).cumsum(-1), delta_b * weights.cumsum(-1)
    gap, residual = surrogate - improvement, bound.residual_constant(length, delta / w_min, delta_b, XI)
    return {
        "improvement": float(improvement.mean()),
        "surrogate": float(surrogate.mean()),
        "gap": float(gap.abs().mean()),
        "residual": float(residual),
        "gap_bound": float(bound.gap_bound(mean_divergence, largest, XI).mean()),
        "bound_holds": float((gap <= residual).double().mean()),
        "token_excess": float((weights * largest).max() / delta),
        "prefix_excess": float((spent / allowed)[:, :-1].max()),
    }
