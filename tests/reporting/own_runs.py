"""Runs of a model that is not the paper's, as the quickstart leaves them."""

from collections.abc import Mapping
from pathlib import Path

from tests.reporting.paper_runs import save, training

ACCURACY = "val-core/arithmetic/acc/mean@2"
REWARD = "val-core/arithmetic/reward/mean@2"


def write_own(
    folder: Path, method: str, seed: int | None, scores: Mapping[int, float], end: int | None = None,
    metric: str | None = ACCURACY, model: str = "/models/tiny-qwen3", **loss: object,
) -> Path:  # fmt: skip
    """A run whose validation metric is ``scores`` by step; ``metric`` None logs no validation, but training alone."""
    name = f"{method}-seed{seed}" if seed is not None else method
    policy = {"loss_mode": method if method in ("cppo", "dppo") else "vanilla", **loss}
    settings = {
        "actor_rollout_ref": {"actor": {"policy_loss": policy}, "model": {"path": model}},
        "trainer": {"project_name": "quickstart", "experiment_name": name},
    }
    last = max(scores) if end is None else end
    rows = {}
    for step in range(last + 1):
        row = training(step, last, method.upper(), seed or 0) | {"timing_s/step": 2.0} if step else {}
        rows[step] = row | ({metric: scores[step]} if metric and step in scores else {})
    return save(folder / name, settings, rows)
