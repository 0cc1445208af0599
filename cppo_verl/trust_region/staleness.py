"""What old responses do to a trust region, as numbers for the logger.

A response is as many versions behind as the weights it was sampled with are older than those that now train on it. Its
divergence from mu holds that distance before any update is made. Besides, the importance weights rho = pi/mu spread,
and the effective sample size (sum w)^2 / (n sum w^2) says how much of the batch is left (arXiv 2602.17616 sees a
collapse coming by it). Sums and counts as in ``metrics``, with the same responses left out.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.metrics import PREFIX, MetricSums, any_nonzero, removed_part
from cppo_verl.trust_region.tokens import MAX_LOG_RATIO, Tokens

BINS = 6  # versions behind: 0, 1, 2, 3, 4, and 5 or more
MOMENTS = ("importance", "importance_square", "response_importance", "response_importance_square")
FIRST_UPDATE = (*MOMENTS, *(f"divergence_by_staleness/{i}" for i in range(BINS)))  # also for a step's first update


def summarise(
    tokens: Tokens, divergence: Tensor, verdict: Verdict, behind: Tensor, rollout_log_prob: Tensor
) -> MetricSums:
    """Sums of one micro-batch, with a single transfer from the device.

    Args:
        tokens: what the rule saw; its ``old_log_prob`` is the anchor's, mu's or not.
        divergence: (batch, length) D_t from that anchor, 0 at invalid positions.
        behind: (batch,) int64 versions behind, by the oldest weights of a response.
        rollout_log_prob: (batch, length) log mu(y_t|s_t).
    """
    with torch.no_grad():
        mask = tokens.mask & any_nonzero(torch.where(tokens.mask, tokens.advantages, 0.0)).unsqueeze(-1)
        length = mask.sum(-1).double()
        member = behind.to(length.device).clamp(0, BINS - 1)
        total = torch.where(mask, divergence, 0.0).sum(-1).double()
        taken = removed_part(verdict, mask).sum(-1).double()
        by_bin = [length.new_zeros(BINS).index_add(0, member, x) for x in (total, taken, length)]
        log_weight = (tokens.log_prob - rollout_log_prob.to(tokens.log_prob)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        log_weight = torch.where(mask, log_weight, 0.0).double()
        weight = torch.where(mask, log_weight.exp(), 0.0)
        whole = torch.where(length > 0, log_weight.sum(-1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), 0.0)
        scalars = [x.sum() for x in (weight, weight.square(), whole, whole.square(), length, length > 0)]
        flat = torch.cat([*by_bin, torch.stack([x.double() for x in scalars])]).tolist()
    if not all(map(math.isfinite, flat)):  # ``metrics.summarise`` says so; here the micro-batch does not count
        flat = [0.0] * len(flat)

    parts = [flat[i * BINS : (i + 1) * BINS] for i in range(3)]
    sums, counts = {}, {}
    for i in range(BINS):
        for name, part in (("divergence", parts[0]), ("masked_share", parts[1])):
            sums[f"{name}_by_staleness/{i}"] = part[i]
            counts[f"{name}_by_staleness/{i}/tokens"] = parts[2][i]
    *moments, all_tokens, all_responses = flat[3 * BINS :]
    sums.update(zip(MOMENTS, moments, strict=True))
    return MetricSums(sums, {**counts, "importance_tokens": all_tokens, "importance_responses": all_responses}, {})


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
