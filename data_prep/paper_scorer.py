"""The paper's scorer: verl's math_dapo, out of verl's own file, without the seconds that importing verl takes."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

MODULE = "verl.utils.reward_score.math_dapo"


def _load() -> Any:
    package = importlib.util.find_spec("verl")
    if package is None or package.origin is None:
        raise ImportError("verl is not installed: its math_dapo is the paper's scorer")
    file = Path(package.origin).parents[1].joinpath(*MODULE.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_math_dapo = _load()


def verdict(response: str, truth: str) -> tuple[bool, str]:
    """Whether the response's last 300 characters answer with ``truth``, and the answer read, `[INVALID]` for none."""
    found = _math_dapo.compute_score(response, truth)
    return bool(found["acc"]), str(found["pred"])


@lru_cache(1 << 16)
def unreadable(truth: str) -> str:
    """Why the scorer would call no response right, or one that says nothing; "" where it reads ``truth``."""
    right, pred = verdict(f"Answer: {truth}", truth)
    return "" if right and pred else f"is {truth}, of which the scorer reads {pred!r}"
