"""Reward of the `arithmetic` data source: verl's own DAPO scorer, which verl does not route to this name by itself.

Name this file in `reward.custom_reward_function.path`; it is loaded alone, so it imports nothing of this package.
"""

from typing import Any

from verl.utils.reward_score import math_dapo


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
    verdict: Any = math_dapo.compute_score(solution_str, ground_truth)  # a dict, though verl annotates a float
    return verdict
