"""Synthetic runs that encode the paper's tables: logs and configs as the recipes would leave them."""

import json
import math
import random
from collections.abc import Collection, Mapping
from pathlib import Path

import yaml

from cppo_verl import paper
from cppo_verl.reporting import metrics
from cppo_verl.reporting.labels import model_key

PATHS = {model: f"Qwen/{model}" for model in paper.settings()}
LOSS = {"GRPO": "vanilla", "TRM-Max": "trm_max", "TRM-Avg": "trm_avg"}
VALIDATED_EVERY = 20


def unrounded(row: paper.Score) -> dict[str, float]:
    """Scores that round to every number of a row as printed, its mean included.

    Three printed means are not what the printed parts give (27.9867 as 27.98, 20.2767 as 20.27, 48.9533 as 48.96), so
    the parts before rounding were others: there, all are moved by what the mean lacks, at most half of the last digit.
    """
    parts = {name: getattr(row, name) for name in paper.BENCHMARKS}
    gap = row.avg - sum(parts.values()) / 3
    moved = max(-0.0049, min(0.0049, gap)) if round(sum(parts.values()) / 3, 2) != row.avg else 0.0
    return {name: value + moved for name, value in parts.items()}


def curve(best: Mapping[str, float], t_stop: int, best_step: int, seed: int = 0) -> dict[int, dict[str, float]]:
    """Validation by step: rises to ``best`` at ``best_step``, stays below it up to T_stop, and is better only after."""
    draw = random.Random(seed)
    steps = [*range(0, t_stop + 2 * VALIDATED_EVERY, VALIDATED_EVERY)]
    found = {}
    for step in sorted({*steps, best_step}):
        share = 0.25 + 0.7 * (1 - math.exp(-3 * step / best_step))
        level = 1.0 if step == best_step else 1.3 if step > t_stop else min(0.97, share + draw.gauss(0, 0.02))
        found[step] = {name: score * level for name, score in best.items()}
    return found


def collapsing(best: Mapping[str, float], t_stop: int, fall: int) -> dict[int, dict[str, float]]:
    """Rises until ``fall`` and is near zero from there on."""
    steps = range(0, t_stop + VALIDATED_EVERY, VALIDATED_EVERY)
    return {
        step: {name: score * (0.02 if step >= fall else 0.3 + 0.6 * step / fall) for name, score in best.items()}
        for step in steps
    }


def training(step: int, end: int, method: str, seed: int = 0) -> dict[str, float]:
    """What a training step logs."""
    draw = random.Random(f"{method}{seed}{step}")
    progress = step / end
    place = paper.METHODS.index(method) if method in paper.METHODS else 3
    spread = (0.004 + 0.001 * place) * (1 + 2 * progress) * draw.lognormvariate(0, 0.2)
    token, positive = spread * draw.uniform(0.4, 0.7), spread * draw.uniform(0.3, 0.5)
    row = {
        "critic/rewards/mean": 0.2 + (0.4 + 0.02 * place) * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.04),
        metrics.LENGTH: 2000 + 300 * place + 1500 * progress + draw.gauss(0, 80),
        metrics.GRAD_NORM: draw.lognormvariate(-1.5, 0.4),
        "actor/entropy": 0.6 - 0.3 * progress + draw.gauss(0, 0.02),
        metrics.DIVERGENCE_MEAN: spread,
        metrics.DIVERGENCE_P99: spread * draw.uniform(9, 14),
        metrics.DIVERGENCE_MAX: min(0.95, spread * draw.uniform(22, 40)),
        metrics.FIRST_UPDATE: 2e-5 * draw.lognormvariate(0, 0.5),
        metrics.ZERO_VARIANCE: 0.3 + 0.2 * progress + draw.gauss(0, 0.03),
        metrics.TIME_STEP: draw.gauss(90, 4),
        metrics.TIME_GEN: draw.gauss(50, 3),
        metrics.TIME_UPDATE: draw.gauss(25, 1),
    }
    if method in ("GRPO", "CISPO"):
        row["actor/pg_clipfrac"] = 0.3 * spread
    else:
        row |= {metrics.MASKED: spread, metrics.MASKED_BY_TOKEN: token, metrics.PREFIX_AVERAGE: 0.9 * spread}
        row |= {metrics.MASKED_POSITIVE: positive, metrics.MASKED_NEGATIVE: spread - positive}
    if method not in paper.METHODS or method == "CPPO":
        row |= {metrics.MASKED_BY_BUDGET: spread - token, metrics.EFFECTIVE_BUDGET: 0.02 + spread / 2}
    return row | {name: spread * (0.5 + 0.14 * i) for i, name in enumerate(metrics.BY_POSITION)}


def config(model: str, method: str, experiment: str, **knobs: object) -> dict:
    """The part of a recipe's resolved config that the report reads."""
    setting = paper.settings()[model]
    loss = {
        "loss_mode": LOSS.get(method, method.lower()), "divergence": "tv", "estimator": "topk", "weights": "linear",
        "gate": "hard", "delta": setting.delta, "delta_b": setting.delta_b_min, "w_min": setting.w_min,
        "budget": setting.budget,
    } | knobs  # fmt: skip
    return {
        "actor_rollout_ref": {
            "actor": {"policy_loss": loss, "ppo_mini_batch_size": setting.minibatch, "optim": {"lr": 1e-6}},
            "model": {"path": PATHS[model]},
            "rollout": {"n": setting.n},
        },
        "data": {"train_batch_size": setting.prompts, "max_response_length": setting.max_response_tokens},
        "trainer": {"project_name": model_key(model), "experiment_name": experiment},
    }


def write_run(
    folder: Path, model: str, method: str, scores: Mapping[int, Mapping[str, float]], experiment: str = "",
    every: int = 10, seed: int = 0, logged: Collection[str] | None = None, **knobs: object,
) -> Path:  # fmt: skip
    """A run directory with its log and config; training is logged every ``every`` steps, of it ``logged`` or all."""
    experiment = experiment or method.lower().replace("-", "_")
    end, rows = max(scores), {}
    for step in sorted({*scores, *range(1, end + 1, every)}):
        row = training(step, end, method, seed) if step else {}
        row = {name: value for name, value in row.items() if logged is None or name in logged}
        found = {f"val-core/{name}/acc/mean@16": value / 100 for name, value in scores.get(step, {}).items()}
        rows[step] = row | found
    return save(folder / model_key(model) / experiment, config(model, method, experiment, **knobs), rows)


def save(run: Path, settings: Mapping, rows: Mapping[int, Mapping[str, float]]) -> Path:
    """A run directory with its config and its log."""
    (run / "logs").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    lines = [json.dumps({"step": step, "data": row}) + "\n" for step, row in rows.items()]
    (run / "logs/metrics-1.jsonl").write_text("".join(lines))
    return run


def write_paper(folder: Path, every: int = 10, logged: Collection[str] | None = None) -> list[Path]:
    """All 28 runs of Table 4; the one that the paper says collapsed does so here."""
    runs = []
    for i, row in enumerate(paper.breakdown()):
        if row.avg is None:
            scores = collapsing(dict.fromkeys(paper.BENCHMARKS, 40.0), row.t_stop, fall=300)
        else:
            best_step = row.t_stop - VALIDATED_EVERY * (i % 3) if row.t_stop % VALIDATED_EVERY == 0 else row.t_stop
            scores = curve(unrounded(row), row.t_stop, best_step, seed=i)
        runs.append(write_run(folder, row.model, row.method, scores, every=every, logged=logged))
    return runs
