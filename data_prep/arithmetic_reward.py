"""Reward of the `arithmetic` data source: +1 for the right number after the last `Answer:`, -1 for anything else.

Name this file in `reward.custom_reward_function.path`.
"""

from typing import Any

from data_prep import answers


def compute_score(data_source: str, solution_str: str, ground_truth: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Score the last `Answer:` of a response's last 300 characters; ``ground_truth`` is the integer as text.

    Returns:
        score (+1 or -1), acc (bool; verl makes `val-core/arithmetic/acc/mean@N` of it) and pred (the answer read).
    """
    answer = answers.stated(solution_str)
    value = answers.number(answer)
    right = value is not None and value == answers.number(ground_truth)
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": answers.printable(answer or "[INVALID]")}
