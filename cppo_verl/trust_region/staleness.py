"""What old responses do to a trust region, as numbers for the logger.

A response is as many versions behind as the weights it was sampled with are older than those that now train on it. Its
divergence from mu holds that distance before any update, and the importance weights rho = pi/mu spread: the effective
sample size (sum w)^2 / (n sum w^2) says how much of the batch is left (arXiv 2602.17616). Sums and counts as in
``metrics``, with the same responses left out.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.metrics import PREFIX, MetricSums, on_the_host, removed_part
from cppo_verl.trust_region.tokens import MAX_LOG_RATIO, Tokens

BINS = 6  # versions behind: 0, 1, 2, 3, 4, and 5 or more
MOMENTS = ("importance", "importance_square", "response_importance", "response_importance_square")
FIRST_UPDATE = (*MOMENTS, *(f"divergence_by_staleness/{i}" for i in range(BINS)))  # also for a step's first update


def summarise(
    tokens: Tokens, divergence: Tensor, verdict: Verdict, behind: Tensor, rollout_log_prob: Tensor
) -> MetricSums:
    """Sums of one micro-batch, after one transfer from the device.

    Args:
        tokens: what the rule saw; its ``old_log_prob`` is the anchor's, mu's or not.
        divergence: (batch, length) D_t from that anchor, 0 at invalid positions.
        behind: (batch,) int64 versions behind, by the oldest weights of a response.
        rollout_log_prob: (batch, length) log mu(y_t|s_t).
    """
    with torch.no_grad():
        mask = tokens.counted
        log_weight = (tokens.log_prob - rollout_log_prob.to(tokens.log_prob)).double()
        log_weight = log_weight.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).masked_fill(~mask, 0.0)
        weight = log_weight.exp() * mask
        rows = on_the_host(
            {
                "behind": behind.to(mask.device).clamp(0, BINS - 1),
                "tokens": mask.sum(-1),
                "divergence": divergence.masked_fill(~mask, 0.0).sum(-1),
                "masked_share": removed_part(verdict, mask).sum(-1),
                "importance": weight.sum(-1),
                "importance_square": weight.square().sum(-1),
                "response_importance": log_weight.sum(-1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * mask.any(-1),
            }
        )
    rows["response_importance_square"] = rows["response_importance"] ** 2
    if not all(np.isfinite(values).all() for values in rows.values()):
        rows = {name: np.zeros_like(values) for name, values in rows.items()}  # ``metrics.summarise`` says so

    sums = {name: float(rows[name].sum()) for name in MOMENTS}
    counts = {"importance_tokens": rows["tokens"].sum(), "importance_responses": (rows["tokens"] > 0).sum()}
    by_age = {name: np.bincount(rows["behind"].astype(int), rows[name], minlength=BINS) for name in rows}
    for name in ("divergence", "masked_share"):
        for i in range(BINS):
            sums[f"{name}_by_staleness/{i}"] = float(by_age[name][i])
            counts[f"{name}_by_staleness/{i}/tokens"] = by_age["tokens"][i]
    return MetricSums(sums, {name: float(value) for name, value in counts.items()}, {})


def effective_sample_sizes(folded: Mapping[str, list[float]]) -> dict[str, float]:
    """Shares of the tokens and of the responses that a step begins with, each in [0, 1]; {} without the moments.

    Args:
        folded: metrics of a step, each a list of one value, with the means of ``MOMENTS`` of its first update.
    """
    found = {}
    for what, name in (("tokens", "importance"), ("responses", "response_importance")):
        mean, square = (folded.get(f"{PREFIX}first_update/{name}{end}", [0.0])[0] for end in ("", "_square"))
        if square > 0:
            found[f"{PREFIX}effective_sample_size/{what}"] = mean * mean / square
    return found
