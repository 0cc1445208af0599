"""Synthetic runs: logs and configs as recipes and the quickstart leave them; those of the paper encode its tables."""

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import yaml

from cppo_verl import paper
from cppo_verl.reporting import metrics
from cppo_verl.reporting.labels import model_key
from cppo_verl.reporting.logs import Run

P = metrics.TRUST_REGION
ACCURACY, REWARD = "val-core/arithmetic/acc/mean@2", "val-core/arithmetic/reward/mean@2"
LOSS = {"loss_mode": "cppo", "divergence": "tv", "estimator": "binary", "topk": 20, "delta": 0.15, "delta_b": 0.02,
        "w_min": 0.8, "weights": "linear", "budget": "quantile", "gate": "hard"}  # fmt: skip
ACTOR = {"policy_loss": LOSS, "ppo_mini_batch_size": 8, "optim": {"lr": 2e-4}, "data_loader_seed": 42}
CONFIG = {
    "actor_rollout_ref": {"actor": ACTOR, "model": {"path": "models/tiny-qwen3/"}, "rollout": {"n": 4, "seed": 7}},
    "algorithm": {"adv_estimator": "group_relative"},
    "data": {"train_batch_size": 16, "seed": None},
}

Rows = Mapping[int, Mapping[str, float]]  # by step


def run_of(rows: Rows, **settings: object) -> Run:
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype="float64").rename_axis("step").sort_index()
    return Run("toy", settings, frame)


def write_log(path: Path, rows: Iterable[tuple[int, Mapping[str, float]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": row}) + "\n" for step, row in rows))
    return path


def save(run: Path, settings: Mapping, rows: Rows) -> Path:
    """A run directory with its config and its log."""
    write_log(run / "logs/metrics-1.jsonl", rows.items())
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def realistic_steps(steps: int = 60) -> dict[int, dict[str, float]]:
    """What a run of ``steps`` steps logs, validated every fifth step and before training."""
    rows: dict[int, dict[str, float]] = {}
    for step in range(steps + 1):
        draw, progress = random.Random(step), step / steps
        spread = 0.01 * (1 + 2 * progress) * draw.lognormvariate(0, 0.2)
        token, positive = spread * draw.uniform(0.4, 0.7), spread * draw.uniform(0.3, 0.5)
        shares = {"": spread, "_token_threshold": token, "_prefix_budget": spread - token}
        shares |= {"_positive": positive, "_negative": spread - positive}
        rows[step] = {
            "critic/rewards/mean": 0.2 + 0.4 * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.04),
            metrics.GRAD_NORM: draw.lognormvariate(-1.5, 0.4),
            metrics.DIVERGENCE_MEAN: spread,
            P + "divergence_p99": spread * draw.uniform(9, 14),
            metrics.DIVERGENCE_MAX: min(0.95, spread * draw.uniform(22, 40)),
            metrics.FIRST_UPDATE: 2e-5 * draw.lognormvariate(0, 0.5),
            P + "prefix_average": 0.9 * spread,
            P + "effective_delta_b": 0.02 + spread / 2,
            **{name: draw.gauss(mean, 3) for name, mean in zip(metrics.TIMES, (90, 50, 25), strict=True)},
            **{f"{P}masked_share{name}": share for name, share in shares.items()},
            **{name: spread * (0.5 + 0.14 * i) for i, name in enumerate(metrics.BY_POSITION)},
        }
    rows[0] = {}
    for step in range(0, steps + 1, 5):
        accuracy = 0.48 + 0.34 * (1 - math.exp(-3 * step / steps)) + 0.004 * (step % 3)
        rows[step] |= {"val-core/arithmetic/acc/mean@4": accuracy, "val-aux/arithmetic/reward/mean@4": accuracy}
    return rows


def realistic_run(folder: Path, steps: int = 60) -> Path:
    """A run that was killed after two thirds, resumed from a checkpoint, and finished."""
    rows, checkpoint = realistic_steps(steps), 2 * steps // 3
    save(folder, CONFIG, {step: row for step, row in rows.items() if step <= checkpoint + 3})
    resumed = {name: x for name, x in rows[checkpoint].items() if name.startswith("val-")}
    later = {step: row for step, row in rows.items() if step > checkpoint}
    write_log(folder / "logs/metrics-2.jsonl", [(checkpoint, resumed), *later.items()])
    return folder


def trained(step: int, own_loss: bool) -> dict[str, float]:
    """A few of the metrics of a training step; verl's own losses log what they clip."""
    share = P + "masked_share" if own_loss else "actor/pg_clipfrac"
    return {"critic/rewards/mean": 0.2 + 0.01 * step, share: 0.002 + 1e-5 * step, metrics.TIME_STEP: 2.0}


def write_own(
    folder: Path, method: str, seed: int | None, scores: Mapping[int, float], end: int | None = None,
    metric: str | None = ACCURACY, model: str = "/models/tiny-qwen3", clip: float = 0.28, **loss: object,
) -> Path:  # fmt: skip
    """A run as the quickstart leaves it, whose validation metric is ``scores`` by step; without ``metric`` it logs
    training alone."""
    name = f"{method}-seed{seed}" if seed is not None else method
    policy = {"loss_mode": method if method in ("cppo", "dppo") else "vanilla", **loss}
    settings = {
        "actor_rollout_ref": {"actor": {"policy_loss": policy, "clip_ratio_high": clip}, "model": {"path": model}},
        "trainer": {"project_name": "quickstart", "experiment_name": name},
    }
    rows: dict[int, dict[str, float]] = {0: {}}
    for step in range(1, (max(scores) if end is None else end) + 1):
        rows[step] = trained(step, method != "grpo") | dict.fromkeys(metrics.BY_POSITION, 0.01)
    for step, score in scores.items() if metric else ():
        rows[step][str(metric)] = score
    return save(folder / name, settings, rows)


def config(model: str, method: str, experiment: str, **knobs: object) -> dict:
    """The part of a recipe's resolved config that the report reads."""
    setting = paper.settings()[model]
    mode = {"GRPO": "vanilla"}.get(method, method.lower().replace("-", "_"))
    sizes = {"delta": setting.delta, "delta_b": setting.delta_b_min, "w_min": setting.w_min}
    loss = LOSS | sizes | {"loss_mode": mode, "estimator": "topk", "budget": setting.budget} | knobs
    return {
        "actor_rollout_ref": {
            "actor": {"policy_loss": loss, "ppo_mini_batch_size": setting.minibatch, "optim": {"lr": 1e-6}},
            "model": {"path": f"Qwen/{model}"},
            "rollout": {"n": setting.n},
        },
        "data": {"train_batch_size": setting.prompts, "max_response_length": setting.max_response_tokens},
        "trainer": {"project_name": model_key(model), "experiment_name": experiment},
    }


def write_run(folder: Path, model: str, method: str, scores: Rows, experiment: str = "", **knobs: object) -> Path:
    """A run of a recipe that logs at the steps of ``scores`` (percent by benchmark)."""
    experiment = experiment or method.lower().replace("-", "_")
    rows = {}
    for step, each in scores.items():
        found = {f"val-core/{name}/acc/mean@16": value / 100 for name, value in each.items()}
        rows[step] = found | (trained(step, method not in ("GRPO", "CISPO")) if step else {})
    return save(folder / model_key(model) / experiment, config(model, method, experiment, **knobs), rows)


def unrounded(row: paper.Score) -> dict[str, float]:
    """Scores that round to every number of a row as printed, its mean included.

    Three printed means are not what the printed parts give (27.9867 as 27.98, 20.2767 as 20.27, 48.9533 as 48.96), so
    the parts before rounding were others: there, all are moved by what the mean lacks, at most half of the last digit.
    """
    parts = {name: getattr(row, name) for name in paper.BENCHMARKS}
    gap = row.avg - sum(parts.values()) / 3
    moved = max(-0.0049, min(0.0049, gap)) if round(sum(parts.values()) / 3, 2) != row.avg else 0.0
    return {name: value + moved for name, value in parts.items()}


def curve(best: Mapping[str, float], levels: Mapping[int, float]) -> dict[int, dict[str, float]]:
    """Validation by step: shares of ``best``."""
    return {step: {name: score * level for name, score in best.items()} for step, level in levels.items()}
