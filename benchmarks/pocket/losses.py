"""The policy losses and the advantage estimator as verl's registries hold them, bound to a preset of this package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import FSDPActorConfig

from cppo_verl import presets
from cppo_verl.integration import losses as registered
from cppo_verl.integration.config import TrustRegionLossConfig
from cppo_verl.trust_region import extensions, metrics
from cppo_verl.trust_region.rules import RULES, observe_clipping
from cppo_verl.trust_region.tokens import Tokens
from cppo_verl.trust_region.topk import TOPK, without_sampled

AGGREGATION = "seq-mean-token-sum-norm"
TRUNCATION = "2.0"  # of the weight from mu to the proximal policy; verl's default
Loss = Callable[..., tuple[Tensor, metrics.MetricSums]]


def policy_loss(rule: dict[str, Any], length: int) -> Loss:
    """loss(log_pi, log_anchor, tokens, advantages, weights, scale) -> (loss, sums for the logger).

    ``log_pi`` and ``log_anchor`` are full log-laws (batch, length, vocabulary); a rule sees of them what its estimator
    may. The anchor is mu or the proximal policy; ``weights`` (batch, length) then carry the way from mu to there.
    ``scale`` is what ``budget_target`` has made of the thresholds. ``rule`` has a ``preset``, the config ``folder`` of
    one that is not ours, and overrides of its ``policy_loss``; ``length`` is of every response.
    """
    own = dict(rule)
    folders = [Path(own.pop("folder"))] if "folder" in own else []
    actor = presets.section(own.pop("preset"), folders, "actor_rollout_ref.actor")
    chosen = {**actor["policy_loss"], "max_response_length": length, **own}
    chosen.pop("_target_", None)
    if chosen.get("rule_module"):
        chosen["rule_module"] = extensions.resolve(chosen["rule_module"], folders)
    knobs = TrustRegionLossConfig(**chosen)
    clip = {k: v for k, v in actor.items() if k.startswith("clip_ratio")}
    config = FSDPActorConfig(rollout_n=8, ppo_micro_batch_size_per_gpu=1, policy_loss=knobs, **clip)
    config.global_batch_info["loss_scale_factor"] = length
    function, clipping = get_policy_loss_fn(knobs.loss_mode), (config.clip_ratio_low, config.clip_ratio_high)

    def call(log_pi, log_anchor, tokens, advantages, weights=None, scale=1.0):
        log_prob, old_log_prob = (of_sampled(x, tokens) for x in (log_pi, log_anchor))
        mask, handed = torch.ones_like(log_prob), None
        if knobs.estimator == "topk":
            handed = listed_divergence(log_pi.detach(), log_anchor, tokens, knobs.topk, knobs.divergence)
        sums: list[metrics.MetricSums] = []
        with registered.calling(registered.Call(handed, scale, summaries=sums)):
            loss, _ = function(old_log_prob, log_prob, advantages, mask, AGGREGATION, config, weights)
        if knobs.loss_mode not in RULES:  # a loss of verl's own
            seen = Tokens.of(log_prob, old_log_prob, advantages, mask)
            verdict = observe_clipping(seen, knobs.loss_mode, *clipping, config.clip_ratio_c)
            return loss, metrics.summarise(seen, seen.divergence("tv"), verdict, config.clip_ratio_c)
        return loss, sums[0]

    return call


def of_sampled(laws: Tensor, tokens: Tensor) -> Tensor:
    """(batch, length) of the sampled tokens, from (batch, length, vocabulary)."""
    return laws.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def carried(log_proximal: Tensor, log_mu: Tensor, tokens: Tensor) -> Tensor:
    """min(proximal/mu, 2) of each sampled token, (batch, length), by verl's rollout correction."""
    log_ratio = of_sampled(log_proximal - log_mu, tokens)
    return compute_rollout_correction_weights(log_ratio, torch.ones_like(log_ratio), "token", TRUNCATION)[0]


def listed_divergence(log_pi: Tensor, log_mu: Tensor, tokens: Tensor, k: int, kind: str) -> Tensor:
    """D_t over {top-K of mu, sampled, rest}, (batch, length); K at least the vocabulary gives the full one."""
    listed, ids = log_mu.topk(min(k, log_mu.shape[-1]), -1)
    log_prob, old_log_prob = (of_sampled(x, tokens) for x in (log_pi, log_mu))
    return TOPK[kind](log_pi.gather(-1, ids), without_sampled(listed, ids, tokens), log_prob, old_log_prob)


def advantages_of(rewards: Tensor, group: int, length: int) -> Tensor:
    """(batch, length) from rewards (batch,) of groups in a row, by the registered ``group_relative`` estimator."""
    token_rewards = torch.zeros(len(rewards), length)
    token_rewards[:, -1] = rewards
    groups = [row // group for row in range(len(rewards))]
    return get_adv_estimator_fn("group_relative")(token_rewards, torch.ones_like(token_rewards), index=groups)[0]


def means(sums: list[metrics.MetricSums]) -> dict[str, float]:
    """Exact means of several mini-batches' sums, under short names."""
    whole = metrics.combine(sums)
    return {k: metrics.ratio(total, whole.counts[metrics.denominator_of(k)]) for k, total in whole.sums.items()}
