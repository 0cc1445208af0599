"""Synthetic runs: logs and configs as recipes and the quickstart leave them; those of the paper encode its tables."""

import json
import math
import random
from collections.abc import Collection, Iterable, Mapping
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
VALIDATED_EVERY = 20

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


def training(step: int, end: int, method: str, seed: int = 0) -> dict[str, float]:
    """What a training step logs."""
    draw = random.Random(f"{method}{seed}{step}")
    progress, place = step / end, paper.METHODS.index(method) if method in paper.METHODS else 3
    spread = (0.004 + 0.001 * place) * (1 + 2 * progress) * draw.lognormvariate(0, 0.2)
    token, positive = spread * draw.uniform(0.4, 0.7), spread * draw.uniform(0.3, 0.5)
    row = {
        "critic/rewards/mean": 0.2 + (0.4 + 0.02 * place) * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.04),
        "response_length/mean": 2000 + 300 * place + 1500 * progress + draw.gauss(0, 80),
        metrics.GRAD_NORM: draw.lognormvariate(-1.5, 0.4),
        "actor/entropy": 0.6 - 0.3 * progress + draw.gauss(0, 0.02),
        metrics.DIVERGENCE_MEAN: spread,
        P + "divergence_p99": spread * draw.uniform(9, 14),
        metrics.DIVERGENCE_MAX: min(0.95, spread * draw.uniform(22, 40)),
        metrics.FIRST_UPDATE: 2e-5 * draw.lognormvariate(0, 0.5),
        "trust_region/zero_variance_share": 0.3 + 0.2 * progress + draw.gauss(0, 0.03),
        **{name: draw.gauss(mean, 3) for name, mean in zip(metrics.TIMES, (90, 50, 25), strict=True)},
    }
    if method in ("GRPO", "CISPO"):
        row["actor/pg_clipfrac"] = 0.3 * spread
    else:
        shares = {"": spread, "_token_threshold": token, "_positive": positive, "_negative": spread - positive}
        row |= {f"{P}masked_share{name}": share for name, share in shares.items()} | {
            P + "prefix_average": 0.9 * spread
        }
    if method not in paper.METHODS or method == "CPPO":
        row |= {P + "masked_share_prefix_budget": spread - token, P + "effective_delta_b": 0.02 + spread / 2}
    return row | {name: spread * (0.5 + 0.14 * i) for i, name in enumerate(metrics.BY_POSITION)}


def realistic_steps(steps: int = 60) -> dict[int, dict[str, float]]:
    """What a run of ``steps`` steps logs, validated every fifth step and before training."""
    rows: dict[int, dict[str, float]] = {0: {}} | {step: training(step, steps, "CPPO") for step in range(1, steps + 1)}
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


def write_own(
    folder: Path, method: str, seed: int | None, scores: Mapping[int, float], end: int | None = None,
    metric: str | None = ACCURACY, model: str = "/models/tiny-qwen3", **loss: object,
) -> Path:  # fmt: skip
    """A run as the quickstart leaves it, whose validation metric is ``scores`` by step; without ``metric`` it logs
    training alone."""
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
    draw, found = random.Random(seed), {}
    for step in sorted({*range(0, t_stop + 2 * VALIDATED_EVERY, VALIDATED_EVERY), best_step}):
        share = min(0.97, 0.25 + 0.7 * (1 - math.exp(-3 * step / best_step)) + draw.gauss(0, 0.02))
        level = 1.0 if step == best_step else 1.3 if step > t_stop else share
        found[step] = {name: score * level for name, score in best.items()}
    return found


def collapsing(best: Mapping[str, float], t_stop: int, fall: int) -> dict[int, dict[str, float]]:
    """Rises until ``fall`` and is near zero from there on."""
    return {
        step: {name: score * (0.02 if step >= fall else 0.3 + 0.6 * step / fall) for name, score in best.items()}
        for step in range(0, t_stop + VALIDATED_EVERY, VALIDATED_EVERY)
    }


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


def write_run(
    folder: Path, model: str, method: str, scores: Rows, experiment: str = "", every: int = 10, seed: int = 0,
    logged: Collection[str] | None = None, **knobs: object,
) -> Path:  # fmt: skip
    """A run of a recipe; training is logged every ``every`` steps, of it ``logged`` or all."""
    experiment = experiment or method.lower().replace("-", "_")
    end, rows = max(scores), {}
    for step in sorted({*scores, *range(1, end + 1, every)}):
        row = training(step, end, method, seed) if step else {}
        row = {name: value for name, value in row.items() if logged is None or name in logged}
        found = {f"val-core/{name}/acc/mean@16": value / 100 for name, value in scores.get(step, {}).items()}
        rows[step] = row | found
    return save(folder / model_key(model) / experiment, config(model, method, experiment, **knobs), rows)


def write_paper(folder: Path, logged: Collection[str]) -> None:
    """All 28 runs of Table 4; the one that the paper says collapsed does so here."""
    for i, row in enumerate(paper.breakdown()):
        if row.avg is None:
            scores = collapsing(dict.fromkeys(paper.BENCHMARKS, 40.0), row.t_stop, fall=300)
        else:
            best_step = row.t_stop - VALIDATED_EVERY * (i % 3) if row.t_stop % VALIDATED_EVERY == 0 else row.t_stop
            scores = curve(unrounded(row), row.t_stop, best_step, seed=i)
        write_run(folder, row.model, row.method, scores, logged=logged)
