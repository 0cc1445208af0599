"""The policy losses and the advantage estimator as verl's registries hold them, bound to a preset of this package."""

from collections.abc import Callable, Sequence
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

Loss = Callable[..., tuple[Tensor, metrics.MetricSums]]
TRUNCATION = "2.0"  # of the weight from mu to the proximal policy; verl's default


def preset(name: str, folder: str | None = None) -> dict[str, Any]:
    """``actor_rollout_ref.actor`` of a preset with what it composes over; of one in a config ``folder`` too."""
    folders = [Path(folder)] if folder else []
    actor = presets.section(name, folders, "actor_rollout_ref.actor")
    module = actor["policy_loss"].get("rule_module")
    if module:
        actor["policy_loss"]["rule_module"] = extensions.resolve(module, folders)
    return actor


def policy_loss(rule: dict[str, Any], length: int) -> Loss:
    """loss(log_pi, log_anchor, tokens, advantages, weights, scale) -> (loss, sums for the logger).

    ``log_pi`` and ``log_anchor`` are full log-laws (batch, length, vocabulary); a rule sees of them what its estimator
    may. The anchor is mu or the proximal policy; ``weights`` (batch, length) then carry the way from mu to there.
    ``scale`` is what ``budget_target`` has made of the thresholds.

    Args:
        rule: ``preset``, the config ``folder`` that it lies in if it is not ours, and overrides of its ``policy_loss``.
        length: of every response, and the loss's scale factor.
    """
    actor = preset(rule["preset"], rule.get("folder"))
    knobs = {k: v for k, v in actor["policy_loss"].items() if k != "_target_"}
    knobs |= {"max_response_length": length} | {k: v for k, v in rule.items() if k not in ("preset", "folder")}
    clip = {k: v for k, v in actor.items() if k.startswith("clip_ratio")}
    config = FSDPActorConfig(
        rollout_n=8, ppo_micro_batch_size_per_gpu=1, policy_loss=TrustRegionLossConfig(**knobs), **clip
    )
    config.global_batch_info["loss_scale_factor"] = length
    function, knobs = get_policy_loss_fn(config.policy_loss.loss_mode), config.policy_loss

    def call(
        log_pi: Tensor,
        log_mu: Tensor,
        tokens: Tensor,
        advantages: Tensor,
        weights: Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, metrics.MetricSums]:
        log_prob, old_log_prob = (x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (log_pi, log_mu))
        mask = torch.ones_like(log_prob)
        handed = None
        if knobs.estimator == "topk":
            handed = listed_divergence(log_pi.detach(), log_mu, tokens, knobs.topk, knobs.divergence)
        sums: list[metrics.MetricSums] = []
        with registered.calling(registered.Call(handed, scale, summaries=sums)):
            loss, _ = function(old_log_prob, log_prob, advantages, mask, AGGREGATION, config, weights)
        if knobs.loss_mode not in RULES:
            sums = [observe(Tokens.of(log_prob, old_log_prob, advantages, mask), config)]
        return loss, sums[0]

    return call


def carried(log_proximal: Tensor, log_mu: Tensor, tokens: Tensor) -> Tensor:
    """min(proximal/mu, 2) of each sampled token, (batch, length), by verl's rollout correction."""
    log_ratio = (log_proximal - log_mu).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return compute_rollout_correction_weights(log_ratio, torch.ones_like(log_ratio), "token", TRUNCATION)[0]


def listed_divergence(log_pi: Tensor, log_mu: Tensor, tokens: Tensor, k: int, kind: str) -> Tensor:
    """D_t over {top-K of mu, sampled, rest}, (batch, length); K at least the vocabulary gives the full one."""
    log_prob, old_log_prob = (x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (log_pi, log_mu))
    listed, ids = log_mu.topk(min(k, log_mu.shape[-1]), -1)
    return TOPK[kind](log_pi.gather(-1, ids), without_sampled(listed, ids, tokens), log_prob, old_log_prob)


def observe(tokens: Tokens, config: FSDPActorConfig) -> metrics.MetricSums:
    """Metrics for a loss of verl's own."""
    low, high, cap = config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_c
    verdict = observe_clipping(tokens, config.policy_loss.loss_mode, low, high, cap)
    return metrics.summarise(tokens, tokens.divergence("tv"), verdict, cap)


def advantages_of(rewards: Tensor, groups: Sequence[int], length: int) -> Tensor:
    """(batch, length) from rewards (batch,), by the registered ``group_relative`` estimator."""
    token_rewards = torch.zeros(len(rewards), length, device=rewards.device)
    token_rewards[:, -1] = rewards
    estimate = get_adv_estimator_fn("group_relative")
    return estimate(token_rewards, torch.ones_like(token_rewards), index=groups)[0]


def means(sums: list[metrics.MetricSums]) -> dict[str, float]:
    """Exact means of several mini-batches' sums, under short names."""
    whole = metrics.combine(sums)
    return {k: metrics.ratio(total, whole.counts[metrics.denominator_of(k)]) for k, total in whole.sums.items()}
