"""Pages as a reader's browser parses them, the command line, and runs that have everything a run can log."""

import argparse
import csv
import json
import math
import random
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import yaml

from cppo_verl.cli import report
from cppo_verl.reporting import metrics
from cppo_verl.reporting.logs import Run

LOSS = {"loss_mode": "cppo", "divergence": "tv", "estimator": "binary", "topk": 20, "delta": 0.15, "delta_b": 0.02,
        "w_min": 0.8, "weights": "linear", "budget": "quantile", "gate": "hard"}  # fmt: skip
CONFIG = {
    "actor_rollout_ref": {
        "actor": {
            "policy_loss": LOSS,
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


class Page(HTMLParser):
    """Checks nesting, collects ids, references and attributes."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, file: Path):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str | None] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join(self.text.split())
        assert self.open == [] and len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-1:] or 'nothing'}"

    def handle_data(self, data):
        self.text += data

    def attributes(self, wanted: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == wanted]

    def check_self_contained(self) -> None:
        """It refers to its own parts alone and runs nothing."""
        assert all(reference.startswith("#") and reference[1:] in self.ids for reference in self.references)
        assert "http" not in self.source and "@import" not in self.source and "//" not in self.source
        assert not {"script", "link", "iframe", "image", "img"} & {tag for tag, _ in self.tags}


def command(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    report.add_parser(parser.add_subparsers())
    return parser.parse_args(["report", *map(str, arguments)])


def reported(*arguments: object) -> Path:
    """The report of the command line; its directory is the value of --out, else the run's own."""
    assert report.run(command(*arguments)) == 0
    return (
        Path(str(arguments[arguments.index("--out") + 1]))
        if "--out" in arguments
        else Path(str(arguments[0])) / "report"
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run_of(rows: Mapping[int, Mapping[str, float]], **settings: object) -> Run:
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype="float64").rename_axis("step").sort_index()
    return Run("toy", settings, frame)


def write_log(path: Path, rows: list[tuple[int, dict[str, float]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": row}) + "\n" for step, row in rows))
    return path


def realistic_steps(steps: int = 60, seed: int = 0) -> list[tuple[int, dict[str, float]]]:
    """What a run of ``steps`` steps logs, validated every fifth step and before training."""
    draw = random.Random(seed)
    rows: list[tuple[int, dict[str, float]]] = []
    for step in range(steps + 1):
        progress = step / steps
        row = {} if step == 0 else _training_row(draw, progress)
        if step % 5 == 0:
            accuracy = 0.48 + 0.34 * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.008)
            row |= {"val-core/arithmetic/acc/mean@4": accuracy, "val-aux/arithmetic/reward/mean@4": accuracy}
        rows.append((step, row))
    return rows


def _training_row(draw: random.Random, progress: float) -> dict[str, float]:
    spread = 0.012 * (1 + 2.2 * progress) * draw.lognormvariate(0, 0.18)
    token, budget = 0.9 * spread * draw.uniform(0.7, 1.3), 0.55 * spread * draw.uniform(0.6, 1.4)
    positive = (token + budget) * draw.uniform(0.35, 0.5)
    gen, update, rest = draw.gauss(0.82, 0.06), draw.gauss(0.51, 0.03), abs(draw.gauss(0.22, 0.05))
    reward = 0.46 + 0.34 * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.035)
    by_position = {name: spread * (0.55 + 0.13 * i * (0.5 + progress)) for i, name in enumerate(metrics.BY_POSITION)}
    return by_position | {
        "critic/score/mean": reward,
        "critic/rewards/mean": reward,
        metrics.MASKED: token + budget,
        metrics.MASKED_BY_TOKEN: token,
        metrics.MASKED_BY_BUDGET: budget,
        metrics.MASKED_POSITIVE: positive,
        metrics.MASKED_NEGATIVE: token + budget - positive,
        metrics.DIVERGENCE_MEAN: spread,
        metrics.DIVERGENCE_P99: spread * draw.uniform(9, 14),
        metrics.DIVERGENCE_MAX: min(0.95, spread * draw.uniform(22, 40)),
        metrics.FIRST_UPDATE: 2e-5 * draw.lognormvariate(0, 0.5),
        metrics.PREFIX_AVERAGE: spread * draw.uniform(0.8, 1.0),
        metrics.EFFECTIVE_BUDGET: min(0.04, max(0.02, spread * draw.uniform(0.9, 1.6))),
        metrics.TIME_STEP: gen + update + rest,
        metrics.TIME_GEN: gen,
        metrics.TIME_UPDATE: update,
        metrics.GRAD_NORM: draw.lognormvariate(-0.5, 0.3),
        metrics.LENGTH: draw.gauss(9.5, 0.6),
    }


def realistic_run(folder: Path, steps: int = 60) -> Path:
    """A run that was killed after two thirds, resumed from a checkpoint, and finished."""
    rows = realistic_steps(steps)
    killed, checkpoint = 2 * steps // 3 + 3, 2 * steps // 3
    write_log(folder / "logs/metrics-20260101-090000.jsonl", rows[: killed + 1])
    resumed = {name: x for name, x in rows[checkpoint][1].items() if name.startswith("val-")}
    write_log(folder / "logs/metrics-20260101-101500.jsonl", [(checkpoint, resumed), *rows[checkpoint + 1 :]])
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder
