"""The paper's scorer: verl's math_dapo, out of verl's own file, without the seconds that importing verl takes."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_package = find_spec("verl")
if _package is None or _package.origin is None:
    raise ImportError("verl is not installed: its math_dapo is the paper's scorer")
_file = Path(_package.origin).parent / "utils/reward_score/math_dapo.py"
_math_dapo: dict[str, Any] = {"__name__": "verl.utils.reward_score.math_dapo"}
exec(compile(_file.read_text(encoding="utf-8"), _file, "exec"), _math_dapo)


def verdict(response: str, truth: str) -> tuple[bool, str]:
    """Whether the response's last 300 characters answer with ``truth``, and the answer read, `[INVALID]` for none."""
    found = _math_dapo["compute_score"](response, truth)
    return bool(found["acc"]), str(found["pred"])


@lru_cache(1 << 16)
def unreadable(truth: str) -> str:
    """Why the scorer would call no response right, or one that says nothing; "" where it reads ``truth``."""
    right, pred = verdict(f"Answer: {truth}", truth)
    return "" if right and pred else f"is {truth}, of which the scorer reads {pred!r}"
