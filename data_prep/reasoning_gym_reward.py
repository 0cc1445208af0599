"""reasoning-gym's own scorers as a verl reward: 1 for full marks and 0 for anything less; partial marks are reported.

    reward.custom_reward_function.path=data_prep/reasoning_gym_reward.py
    reward.custom_reward_function.name=compute_score

Scorers give partial marks to a text that merely contains the answer, so only full marks count as right: a 1, to the bit
(spell_backward adds up sevenths to a little more than 1 for an answer with a letter too many). They run in a process
without rights (gym_judge.py), because some evaluate what a model wrote.
"""

import json
from collections.abc import Sequence
from typing import Any

from data_prep import answers
from data_prep.sandbox import Bounded, Sandbox

FULL = 1.0
BATCH = 256  # answers of ours that are scored in one process

_judge = Sandbox("data_prep.gym_judge")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    time_limit: float = 2.0,
    memory_limit_mib: int = 512,
    **kwargs: Any,
) -> dict[str, Any]:
    """Score the answer that ``answers.final`` reads in a response; anything but text scores as an empty response.

    Args:
        extra_info: has ``entry``, the item as JSON, from data_prep/reasoning_gym_data.py.
        time_limit, memory_limit_mib: seconds of processor time, and MiB beyond the start, for the scorer.

    Returns:
        score (1.0 or 0.0), acc (bool), partial (the scorer's marks, 0 to 1), pred (the answer read, as printable text)
        and timed_out (bool: no marks because the scorer ran into a limit).

    Raises:
        ValueError: rows that are not from reasoning_gym_data. SandboxError: no process without rights.
    """
    if not extra_info or "entry" not in extra_info:
        raise ValueError(
            f"data_source = {data_source}: rows without extra_info.entry; make them with data_prep.reasoning_gym_data"
        )
    answer = answers.final(solution_str if isinstance(solution_str, str) else "", str(ground_truth))
    given, timed_out = 0.0, False
    try:
        (given,) = marks([(answer, extra_info["entry"])], time_limit, memory_limit_mib)
    except Bounded:
        timed_out = True
    right = given == FULL
    return {
        "score": float(right),
        "acc": right,
        "partial": min(FULL, max(0.0, given)),
        "pred": answers.printable(answer[-100:]),
        "timed_out": timed_out,
    }


def marks(pairs: Sequence[tuple[str, str]], time_limit: float = 600.0, memory_limit_mib: int = 2048) -> list[float]:
    """The scorer's marks of answers, each with its item as JSON: ``FULL`` for a right one and 0 where it fails."""
    found: list[float] = []
    for start in range(0, len(pairs), BATCH):
        request = [
            [json.loads(entry)["metadata"]["source_dataset"], answer, entry]
            for answer, entry in pairs[start : start + BATCH]
        ]
        found += _judge.call("marks", [request], time_limit, memory_limit_mib)
    return found
