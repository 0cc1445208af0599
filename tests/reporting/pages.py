"""Pages as a reader's browser parses them, the command line, and runs that have everything a run can log."""

import csv
import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import yaml

from cppo_verl.cli.main import main
from cppo_verl.reporting.logs import Run
from tests.reporting.paper_runs import training

LOSS = {"loss_mode": "cppo", "divergence": "tv", "estimator": "binary", "topk": 20, "delta": 0.15, "delta_b": 0.02,
        "w_min": 0.8, "weights": "linear", "budget": "quantile", "gate": "hard"}  # fmt: skip
ACTOR = {"policy_loss": LOSS, "ppo_mini_batch_size": 8, "optim": {"lr": 2e-4}, "data_loader_seed": 42}
CONFIG = {
    "actor_rollout_ref": {"actor": ACTOR, "model": {"path": "models/tiny-qwen3/"}, "rollout": {"n": 4, "seed": 7}},
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


def status(*arguments: object) -> int:
    """Exit status of ``cppo-verl report``."""
    return main(["report", *map(str, arguments)])


def reported(*arguments: object) -> Path:
    """The report of the command line; its directory is the value of --out, else the run's own."""
    assert status(*arguments) == 0
    named = "--out" in arguments
    return Path(str(arguments[arguments.index("--out") + 1] if named else arguments[0])) / ("" if named else "report")


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


def realistic_steps(steps: int = 60) -> list[tuple[int, dict[str, float]]]:
    """What a run of ``steps`` steps logs, validated every fifth step and before training."""
    rows = []
    for step in range(steps + 1):
        row = training(step, steps, "CPPO") if step else {}
        if step % 5 == 0:
            accuracy = 0.48 + 0.34 * (1 - math.exp(-3 * step / steps)) + 0.004 * (step % 3)
            row |= {"val-core/arithmetic/acc/mean@4": accuracy, "val-aux/arithmetic/reward/mean@4": accuracy}
        rows.append((step, row))
    return rows


def realistic_run(folder: Path, steps: int = 60) -> Path:
    """A run that was killed after two thirds, resumed from a checkpoint, and finished."""
    rows = realistic_steps(steps)
    killed, checkpoint = 2 * steps // 3 + 3, 2 * steps // 3
    write_log(folder / "logs/metrics-20260101-090000.jsonl", rows[: killed + 1])
    resumed = {name: x for name, x in rows[checkpoint][1].items() if name.startswith("val-")}
    write_log(folder / "logs/metrics-20260101-101500.jsonl", [(checkpoint, resumed), *rows[checkpoint + 1 :]])
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder
