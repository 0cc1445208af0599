"""Reward of the `arithmetic` data source: +1 for the right number after the last `Answer:`, -1 for anything else.

Name this file in `reward.custom_reward_function.path`.
"""

from typing import Any

from data_prep import answers

INVALID = "[INVALID]"  # verl's word for a response without an answer


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Score the last `Answer:` of a response.

    Args:
        data_source: not used; every row goes to the same scorer.
        solution_str: the decoded response; only its last 300 characters count.
        ground_truth: the integer as text.
        extra_info, kwargs: not used; verl passes them.

    Returns:
        score (+1 or -1), acc (bool; verl makes `val-core/arithmetic/acc/mean@N` of it) and pred (the answer read).
    """
    answer = answers.stated(solution_str)
    value = answers.number(answer)
    right = value is not None and value == answers.number(ground_truth)
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": answers.printable(answer or INVALID)}
