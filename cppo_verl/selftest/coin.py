"""A reward that knows nothing: heads or tails by the text, so that groups have variance whatever a model writes.

For ``reward.custom_reward_function.path``; loaded alone, so it imports nothing of this package.
"""

import zlib
from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """+1 or -1; arguments as verl passes them."""
    heads = bool(zlib.crc32(solution_str.encode()) & 1)
    return {"score": 1.0 if heads else -1.0, "acc": heads}
