"""The report: headline and numbers of synthetic runs, the CSV, and a page that is well-formed and self-contained."""

import argparse
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from cppo_verl.cli import report
from cppo_verl.reporting import names
from cppo_verl.reporting.figures import PANELS, PNG_DPI, PNG_SIZE_INCHES, blocks, other_time, thirds, with_gaps
from cppo_verl.reporting.logs import Run, read_run
from cppo_verl.reporting.page import alt_text, content_of, html_page, markdown, write_atomically, write_report
from cppo_verl.reporting.settings import method_name, read_settings, settings_table
from cppo_verl.reporting.summary import headline, number_rows, percent, plain, validation

CONFIG = {
    "actor_rollout_ref": {
        "actor": {
            "policy_loss": {
                "loss_mode": "cppo",
                "divergence": "tv",
                "estimator": "binary",
                "topk": 20,
                "delta": 0.15,
                "delta_b": 0.02,
                "w_min": 0.8,
                "weights": "linear",
                "budget": "quantile",
                "gate": "hard",
            },
            "ppo_mini_batch_size": 8,
            "optim": {"lr": 2e-4},
            "data_loader_seed": 42,
        },
        "model": {"path": "models/tiny-qwen3/"},
        "rollout": {"n": 4, "seed": 7},
    },
    "algorithm": {"adv_estimator": "group_relative"},
    "data": {"train_batch_size": 16, "seed": None},
}


def realistic_steps(steps: int = 60, seed: int = 0) -> list[tuple[int, dict[str, float]]]:
    """What a run of ``steps`` steps logs, validated every fifth step and before training."""
    draw = random.Random(seed)
    rows: list[tuple[int, dict[str, float]]] = []
    for step in range(steps + 1):
        progress = step / steps
        row = {} if step == 0 else _training_row(draw, progress)
        if step % 5 == 0:
            accuracy = 0.48 + 0.34 * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.008)
            row["val-core/arithmetic/acc/mean@4"] = accuracy
            row["val-aux/arithmetic/reward/mean@4"] = accuracy
        rows.append((step, row))
    return rows


def _training_row(draw: random.Random, progress: float) -> dict[str, float]:
    spread = 0.012 * (1 + 2.2 * progress) * draw.lognormvariate(0, 0.18)
    token, budget = 0.9 * spread * draw.uniform(0.7, 1.3), 0.55 * spread * draw.uniform(0.6, 1.4)
    positive = (token + budget) * draw.uniform(0.35, 0.5)
    gen, update, rest = draw.gauss(0.82, 0.06), draw.gauss(0.51, 0.03), abs(draw.gauss(0.22, 0.05))
    row = {
        "critic/score/mean": 0.46 + 0.34 * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.035),
        names.MASKED: token + budget,
        names.MASKED_BY_TOKEN: token,
        names.MASKED_BY_BUDGET: budget,
        names.MASKED_POSITIVE: positive,
        names.MASKED_NEGATIVE: token + budget - positive,
        names.DIVERGENCE_MEAN: spread,
        names.DIVERGENCE_P99: spread * draw.uniform(9, 14),
        names.DIVERGENCE_MAX: min(0.95, spread * draw.uniform(22, 40)),
        names.FIRST_UPDATE: 2e-5 * draw.lognormvariate(0, 0.5),
        names.PREFIX_AVERAGE: spread * draw.uniform(0.8, 1.0),
        names.EFFECTIVE_BUDGET: min(0.04, max(0.02, spread * draw.uniform(0.9, 1.6))),
        names.TRUST_REGION + "ratio_capped_share": 0.0,
        names.TIME_STEP: gen + update + rest,
        names.TIME_GEN: gen,
        names.TIME_UPDATE: update,
        "actor/grad_norm": draw.lognormvariate(-0.5, 0.3),
        "response_length/mean": draw.gauss(9.5, 0.6),
    }
    row["critic/rewards/mean"] = row["critic/score/mean"]
    for i, name in enumerate(names.BY_POSITION):
        row[name] = spread * (0.55 + 0.13 * i * (0.5 + progress)) * draw.uniform(0.9, 1.1)
    return row


def write_log(path: Path, rows: list[tuple[int, dict[str, float]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": row}) + "\n" for step, row in rows))


def realistic_run(folder: Path, steps: int = 60) -> Path:
    """A run that was killed after two thirds, resumed from a checkpoint, and finished."""
    rows = realistic_steps(steps)
    killed, checkpoint = 2 * steps // 3 + 3, 2 * steps // 3
    write_log(folder / "logs/metrics-20260101-090000.jsonl", rows[: killed + 1])
    resumed = {name: x for name, x in rows[checkpoint][1].items() if name.startswith("val-")}
    write_log(folder / "logs/metrics-20260101-101500.jsonl", [(checkpoint, resumed), *rows[checkpoint + 1 :]])
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder
