"""What a run is told once, loudly, because it would otherwise be wrong in silence. Each returns a sentence or None."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from cppo_verl.trust_region import metrics

logger = logging.getLogger(__name__)

MARK = "TRUST REGION ALARM"  # ``cppo-verl run`` shows console lines with it
GAP = metrics.PREFIX + "first_update/divergence_mean"


def raise_alarm(sentence: str | None) -> bool:
    """Log the sentence under ``MARK``; whether there was one."""
    if sentence is not None:
        logger.error("%s: %s", MARK, sentence)
    return sentence is not None


def shared_prompts(train_dataset: Any, val_dataset: Any, prompt_key: str) -> str | None:
    """Validation prompts that are also trained on; verl's datasets, others are not looked into."""
    train, val = (_prompts(dataset, prompt_key) for dataset in (train_dataset, val_dataset))
    shared = train & val
    if not shared:
        return None
    return (
        f"{len(shared)} of {len(val)} validation prompts are in data.train_files too, such as "
        f"{min(shared)[:120]}: validation does not measure generalisation. Take them out of the training files "
        "(python -m data_prep.contamination)."
    )


def _prompts(dataset: Any, key: str) -> set[str]:
    frame = getattr(dataset, "dataframe", None)
    if frame is None or key not in frame.column_names:
        return set()
    return {json.dumps(prompt, sort_keys=True) for prompt in frame[key]}


def spent_by_staleness(reported: Mapping[str, Any], delta_b: float) -> str | None:
    """In an asynchronous mode: the distance from the anchor before any update is more than the budget a token.

    Args:
        reported: metrics of one step.
        delta_b: prefix budget a unit of weight, or the threshold that stands for it.
    """
    gap = reported.get(GAP, 0.0)
    if not gap > delta_b:
        return None
    behind = reported.get(f"{metrics.PREFIX}divergence_by_staleness/0", 0.0)
    return (
        f"{GAP}={gap:.3g} is above {delta_b:g}: old responses spend the trust region before any update is made (those "
        f"of the newest weights stand at {behind:.3g}). Set actor_rollout_ref.actor.policy_loss.anchor=proximal, or "
        "budget_target=0.08 there, or let fewer versions pass (trainer.v1.sampler.max_off_policy_threshold)."
    )


def engine_gap(reported: Mapping[str, Any], delta_b: float) -> str | None:
    """Rollout engine and trainer disagree at equal weights by more than the prefix budget allows a token.

    Args:
        reported: metrics of one step.
        delta_b: prefix budget a unit of weight, or the threshold that stands for it.
    """
    gap = reported.get(GAP, 0.0)
    if not gap > delta_b:
        return None
    return (
        f"{GAP}={gap:.3g} is above {delta_b:g}: before any update, the trainer's probabilities are that far from the "
        "rollout's, and the trust region is spent on it. Look for: a temperature or logprobs_mode that only one of the "
        "two applies; response_mask counting tool output; log-probs of older weights; a rollout in lower precision."
    )
