"""What a run is told once, loudly, because it would otherwise be wrong in silence. Each returns a sentence or None."""

import logging
from collections.abc import Mapping
from typing import Any

from cppo_verl.launch.progress import ALARM
from cppo_verl.trust_region import metrics

logger = logging.getLogger(__name__)

GAP = metrics.PREFIX + "first_update/divergence_mean"


def raise_alarm(sentence: str | None) -> bool:
    """Log the sentence behind ``ALARM``, by which ``cppo-verl run`` shows it; whether there was one."""
    if sentence is not None:
        logger.error("%s: %s", ALARM, sentence)
    return sentence is not None


def shared_prompts(train_dataset: Any, val_dataset: Any, prompt_key: str) -> str | None:
    """Validation prompts that are also trained on; a dataset that does not show its prompts is not looked into."""
    train, val = (_prompts(dataset, prompt_key) for dataset in (train_dataset, val_dataset))
    if not train & val:
        return None
    return (
        f"{len(train & val)} of {len(val)} validation prompts are in data.train_files too, such as "
        f"{min(train & val)[:120]}: validation does not measure generalisation. Take them out of the training files "
        "(python -m data_prep.contamination)."
    )


def _prompts(dataset: Any, key: str) -> set[str]:
    """Every prompt as a text; of ``datasets``, pandas or anything else that is read like a mapping of columns."""
    try:
        return {repr(prompt) for prompt in dataset.dataframe[key]}
    except Exception as error:  # noqa: BLE001 - somebody else's dataset; an alarm is not worth a run
        logger.info("prompts of %s are not compared (%s)", type(dataset).__name__, error)
        return set()


def spent(reported: Mapping[str, Any], delta_b: float, stale: bool) -> str | None:
    """Before any update of a step, policy and anchor are further apart than the prefix budget allows a token.

    ``reported`` are the step's metrics; ``stale`` responses may be older than the weights that train on them.
    """
    gap = reported.get(GAP, 0.0)
    if not gap > delta_b:
        return None
    said = f"{GAP}={gap:.3g} is above {delta_b:g}: "
    if stale:
        fresh = reported.get(f"{metrics.PREFIX}divergence_by_staleness/0", 0.0)
        return said + (
            "old responses spend the trust region before any update is made (those of the newest weights stand at "
            f"{fresh:.3g}). Set actor_rollout_ref.actor.policy_loss.anchor=proximal, or budget_target=0.08 there, or "
            "let fewer versions pass (trainer.v1.sampler.max_off_policy_threshold)."
        )
    return said + (
        "before any update, the trainer's probabilities are that far from the rollout's. Look for: a temperature or "
        "logprobs_mode that only one of the two applies; response_mask counting tool output; log-probs of older "
        "weights; a rollout in lower precision."
    )
