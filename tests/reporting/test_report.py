"""The report: headline and numbers of synthetic runs, the CSV, and a page that is well-formed and self-contained."""

import argparse
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
from cppo_verl.reporting.figures import (
    PANELS,
    PNG_DPI,
    PNG_SIZE_INCHES,
    coarse,
    other_time,
    steps_a_point,
    thirds,
)
from cppo_verl.reporting.logs import Run, read_run
from cppo_verl.reporting.marks import blocks, with_gaps
from cppo_verl.reporting.page import alt_text, content_of, html_page, markdown, write_report
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


def command(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    report.add_parser(parser.add_subparsers())
    return parser.parse_args(["report", *arguments])


def run_of(rows: dict[int, dict[str, float]], settings: dict[str, object] | None = None) -> Run:
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype="float64").rename_axis("step").sort_index()
    return Run("toy", settings or {}, frame, (), ())


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The report of the realistic run, through the command line's own parser."""
    folder = realistic_run(tmp_path_factory.mktemp("runs") / "arithmetic-cppo")
    arguments = command(str(folder))
    assert arguments.run(arguments) == 0
    return folder / "report"


# --- headline and numbers ---------------------------------------------------------------------------------------


def test_headline_names_method_before_and_after():
    rows = {step: {"val-core/toy/acc/mean@4": x} for step, x in ((0, 0.25), (5, 0.75), (10, 0.5))}
    head = headline(run_of(rows, {"loss_mode": "cppo", "divergence": "tv", "gate": "hard"}))
    assert head.sentence() == "CPPO: validation accuracy 25.0% → 50.0% after 10 steps"
    assert head.detail == "Validated on toy (4 answers a prompt). Best 75.0% at step 5."


def test_headline_is_the_unweighted_mean_where_every_source_was_validated():
    rows = {
        0: {"val-core/aime24/acc/mean@16": 0.1, "val-core/aime25/acc/mean@16": 0.3},
        10: {"val-core/aime24/acc/mean@16": 0.9},
        20: {"val-core/aime24/acc/mean@16": 0.5, "val-core/aime25/acc/mean@16": 0.4},
        25: {"critic/rewards/mean": 0.0},
    }
    head = headline(run_of(rows))
    assert head.sentence() == "Validation accuracy 20.0% → 45.0% after 20 steps"
    assert head.detail == (
        "Unweighted mean of aime24, aime25 (16 answers a prompt each). Best 45.0% at step 20. "
        "The log goes on to step 25."
    )


def test_headline_takes_the_most_samples_and_prefers_accuracy_to_reward():
    rows = {
        0: {"val-core/toy/acc/mean@4": 0.1, "val-core/toy/acc/mean@16": 0.2, "val-core/toy/reward/mean@16": -0.6},
        1: {"val-core/toy/acc/mean@4": 0.9, "val-core/toy/acc/mean@16": 0.4, "val-core/toy/reward/mean@16": -0.2},
    }
    found = validation(run_of(rows))
    assert (found.kind, found.samples, found.mean.tolist()) == ("accuracy", {"toy": 16}, [0.2, 0.4])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            {3: {"val-core/toy/reward/mean@1": -0.5}, 7: {"val-core/toy/reward/mean@1": 0.25}},
            "Validation reward -0.500 → 0.250 from step 3 to step 7",
        ),
        ({4: {"val-core/toy/acc/mean@1": 0.5}}, "Validation accuracy 50.0% at step 4"),
        (
            {1: {"critic/score/mean": 0.1}, 2: {"critic/score/mean": 0.2}},
            "Training reward 0.100 → 0.200 from step 1 to step 2",
        ),
        ({1: {"actor/grad_norm": 1.0}}, "No validation was logged, nor a training reward"),
        ({0: {"val-core/a/acc/mean@1": 1.0}, 1: {"val-core/b/acc/mean@1": 1.0}},
         "No step validated all of a, b, nor a training reward"),
    ],
)  # fmt: skip
def test_headline_with_less_in_the_log(rows, sentence):
    assert headline(run_of(rows)).sentence() == sentence


def test_number_rows_are_first_last_lowest_highest_and_never_invented():
    run = run_of(
        {1: {names.MASKED: 0.02}, 2: {names.MASKED: math.nan}, 3: {names.MASKED: 0.5}, 4: {names.MASKED: 0.004}}
    )
    rows = {row.metric: row.cells for row in number_rows(run)}
    assert rows[names.MASKED] == ("2.0%", "0.40%", "0.40%", "50.0%")
    assert rows[names.DIVERGENCE_MEAN] == ()


def test_infinite_values_do_not_enter_numbers():
    run = run_of({1: {names.DIVERGENCE_MAX: 0.5}, 2: {names.DIVERGENCE_MAX: math.inf}})
    assert {row.metric: row.cells for row in number_rows(run)}[names.DIVERGENCE_MAX] == ("0.500",) * 4


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.48251, "0.483"), (12.0, "12.0"), (735.2, "735"), (-0.0505, "-0.0505"), (2e-9, "2.00e-9"),
     (12345.6, "12346"), (1.5e8, "1.50e8")],
)  # fmt: skip
def test_plain_has_three_digits(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.4825, "48.2%"), (0.0, "0.0%"), (0.00034, "0.034%"), (1.0, "100.0%")])
def test_percent_keeps_small_shares_visible(value, text):
    assert percent(value) == text


def test_metric_names_are_those_the_package_logs():
    from cppo_verl.trust_region import metrics

    assert metrics.PREFIX == names.TRUST_REGION
    assert metrics.DIVERGENCE_BINS == names.POSITION_BINS
    assert names.FIRST_UPDATE.removeprefix(names.TRUST_REGION + "first_update/") in metrics.FIRST_UPDATE


# --- settings ---------------------------------------------------------------------------------------------------


def test_settings_are_read_and_shown(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    settings = read_settings(path)
    table = dict(settings_table(settings))
    assert method_name(settings) == "CPPO"
    assert table["Model"] == "tiny-qwen3"
    assert table["Prompts × responses"] == "16 × 4"
    assert table["Learning rate"] == "0.0002"
    assert table["Token threshold delta"] == "0.15"
    assert table["Seeds"] == "rollout 7, mini-batches 42"  # data.seed is null


def test_settings_resolve_interpolations_and_yaml_numbers_without_a_dot(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "actor_rollout_ref: {actor: {optim: {lr: 1e-6}, ppo_mini_batch_size: '${data.train_batch_size}'}}\n"
        "data: {train_batch_size: 32}\n"
    )
    settings = read_settings(path)
    assert settings == {"learning_rate": 1e-6, "mini_batch": 32, "prompts": 32}


def test_the_knobs_of_a_rule_from_outside_are_shown_and_none_of_the_others_is_left_out(tmp_path):
    loss = {"loss_mode": "cutoff", "rule_module": "/a/cutoff.py", "grace": 2, "delta": 0.1, "w_min": 0.8, "dro_beta": 1}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"actor_rollout_ref": {"actor": {"policy_loss": loss}}}))
    settings = read_settings(path)
    table = dict(settings_table(settings))
    assert method_name(settings) == table["Rule"] == "cutoff"
    assert (table["grace"], table["Last weight w_min"]) == ("2", "0.8")
    assert "dro_beta" not in table


def test_settings_leave_out_what_the_rule_does_not_use():
    knobs = {"delta": 0.15, "delta_b": 0.02, "w_min": 0.8, "budget": "none", "weights": "linear", "gate": "soft"}
    cppo = dict(settings_table({"loss_mode": "cppo", **knobs}))
    dppo = dict(settings_table({"loss_mode": "dppo", **knobs}))
    assert "Prefix budget delta_b" not in cppo
    assert cppo["Last weight w_min"] == "0.8"
    assert dppo == {"Rule": "dppo", "Token threshold delta": "0.15"}
    assert method_name({"loss_mode": "cppo", **knobs}) == "CPPO (soft)"


# --- what is drawn ----------------------------------------------------------------------------------------------


def test_blocks_leave_a_hole_where_steps_are_missing():
    edges, heights = blocks(pd.Series([1.0, 2.0, 3.0], index=[1, 2, 5]))
    # median distance is 2 here, so 2 -> 5 is no hole at 1.5 x 2 = 3
    assert edges.tolist() == [0.0, 1.5, 3.5, 6.0]
    assert heights.tolist() == [1.0, 2.0, 3.0]
    edges, heights = blocks(pd.Series([1.0, 2.0, 3.0, 4.0], index=[1, 2, 3, 9]))
    assert edges.tolist() == [0.5, 1.5, 2.5, 3.5, 8.5, 9.5]
    np.testing.assert_array_equal(heights, [1.0, 2.0, 3.0, np.nan, 4.0])


def test_lines_break_where_steps_are_missing():
    steps, values = with_gaps(pd.Series([1.0, 2.0, 3.0, 4.0], index=[1, 2, 3, 9]))
    assert steps.tolist() == [1, 2, 3, 6, 9]
    np.testing.assert_array_equal(values, [1.0, 2.0, 3.0, np.nan, 4.0])


def test_thirds_are_means_over_steps_latest_first():
    rows = {step: {name: float(step * (i + 1)) for i, name in enumerate(names.BY_POSITION)} for step in range(1, 7)}
    rows[0] = {"val-core/toy/acc/mean@1": 0.5}  # a step without training is not part of any third
    labels, means = zip(*thirds(run_of(rows)), strict=True)
    assert labels == ("steps 5–6", "steps 3–4", "steps 1–2")
    np.testing.assert_allclose(means[0], 5.5 * np.arange(1, 9))
    np.testing.assert_allclose(means[2], 1.5 * np.arange(1, 9))


def test_other_time_is_the_rest_of_the_steps_that_logged_all_three():
    rows = {
        1: {names.TIME_STEP: 5.0, names.TIME_GEN: 2.0, names.TIME_UPDATE: 1.5},
        2: {names.TIME_STEP: 5.0, names.TIME_GEN: 2.0},
        3: {names.TIME_STEP: 1.0, names.TIME_GEN: 2.0, names.TIME_UPDATE: 1.5},
    }
    assert other_time(run_of(rows)).to_dict() == {1: 1.5, 3: 0.0}
    assert other_time(run_of({1: {names.TIME_STEP: 5.0}})).empty


def test_a_run_of_up_to_400_steps_is_drawn_as_logged():
    run = run_of({step: {names.MASKED: step / 1000} for step in range(1, 401)})
    assert steps_a_point(run) == 1
    assert coarse(run) is run


def test_a_longer_run_is_drawn_in_means_and_the_caption_says_so():
    run = run_of({step: {names.MASKED: float(step), names.DIVERGENCE_MAX: float(step)} for step in range(1, 1001)})
    drawn = coarse(run).frame
    assert steps_a_point(run) == 3
    assert drawn.index[:2].tolist() == [2.0, 5.0]
    assert drawn[names.MASKED].iloc[:2].tolist() == [2.0, 5.0]
    assert drawn[names.DIVERGENCE_MAX].iloc[:2].tolist() == [3.0, 6.0]
    masked = next(panel for panel in PANELS if panel.key == "masked")
    assert masked.caption_for(run).endswith("Each point is the mean of 3 steps.")
    assert "Nothing is smoothed" not in content_of(run, None).footer


def test_drawing_leaves_matplotlib_as_it_was():
    run = run_of({1: {names.MASKED: 0.1}})
    matplotlib.rcParams["font.size"] = 31.0
    before = dict(matplotlib.rcParams)
    try:
        html_page(run, content_of(run, None))
        assert dict(matplotlib.rcParams) == before
    finally:
        matplotlib.rcParams["font.size"] = matplotlib.rcParamsDefault["font.size"]


# --- files ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks nesting, collects ids, references and attributes."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

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


def self_contained(file: Path) -> Page:
    """The page, which is well formed, refers to its own parts alone and runs nothing."""
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert "http" not in text and "@import" not in text and "//" not in text
    assert not {"script", "link", "iframe", "image", "img"} & {tag for tag, _ in page.tags}
    return page


def test_the_page_is_well_formed_and_self_contained(written):
    self_contained(written / "report.html")


def test_the_page_is_made_for_phones_and_screen_readers(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == len(PANELS) == 6
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 and "width" not in a for a in drawings)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert ("html", {"lang": "en"}) in page.tags
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    for panel in PANELS:
        assert panel.title in page.text and panel.caption in page.text
    assert "#2b6cb0" not in "".join(str(attributes) for _, attributes in page.tags)  # colours come from the style


@pytest.fixture(scope="module")
def asynchronous(tmp_path_factory) -> Path:
    """The report of a run in which responses came two versions late, with steered thresholds."""
    folder = tmp_path_factory.mktemp("runs") / "late"
    rows = realistic_steps(12)
    for step, row in rows[1:]:
        row |= {names.BEHIND_MEAN: 1.2, names.BEHIND_MAX: 2, names.SPANNING: 0.25, names.SCALE: 1 + step / 10}
        row |= {names.SAMPLE_SIZE_TOKENS: 0.9, names.SAMPLE_SIZE_RESPONSES: 0.4}
        for i in range(3):
            row[names.FIRST_BY_STALENESS[i]] = 0.01 * i
            row[names.DIVERGENCE_BY_STALENESS[i]], row[names.MASKED_BY_STALENESS[i]] = 0.01 * i + 0.02, 0.03 * i
    write_log(folder / "logs/metrics-20260101-090000.jsonl", rows)
    loss = {**CONFIG["actor_rollout_ref"]["actor"]["policy_loss"], "anchor": "proximal", "budget_target": 0.08}
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["actor_rollout_ref"]["actor"]["policy_loss"] = loss
    config["trainer"] = {"v1": {"trust_region": {"mode": "colocate_async"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = command(str(folder))
    assert arguments.run(arguments) == 0
    return folder / "report"


def test_old_responses_have_panels_of_their_own(asynchronous):
    page = Page((asynchronous / "report.html").read_text(encoding="utf-8"))
    drawings = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 9
    assert "versions behind, mean 1.20 to 1.20; versions behind, oldest 2.00 to 2.00" in drawings[6]
    assert "newest weights 0 to 0; the same, one version behind 0.0100 to 0.0100" in drawings[7]
    assert "scale of the thresholds 1.10 to 2.20" in drawings[8]
    for said in ("colocate_async", "proximal", "0.08"):
        assert said in page.text
    with Image.open(asynchronous / "report.png") as picture:
        assert picture.height > PNG_SIZE_INCHES[1] * PNG_DPI


def test_the_page_says_the_result_and_the_settings(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    rows = dict(realistic_steps())
    before, after = (rows[step]["val-core/arithmetic/acc/mean@4"] for step in (0, 60))
    assert f"{100 * before:.1f}% → to {100 * after:.1f}%" in " ".join(page.text.split())
    assert "after 60 steps" in page.text
    assert "tiny-qwen3" in page.text and "quantile" in page.text


def test_the_csv_is_the_merged_log(written):
    table = pd.read_csv(written / "metrics.csv", index_col="step")
    rows = dict(realistic_steps())
    assert table.index.tolist() == list(range(61))
    for step in (0, 17, 40, 41, 60):  # 40 is the checkpoint the run was resumed from
        logged = table.loc[step].dropna()
        assert logged.to_dict() == pytest.approx(rows[step], rel=1e-15)


def test_the_picture_has_the_promised_size(written):
    with Image.open(written / "report.png") as picture:
        picture.load()
        assert picture.size == tuple(round(side * PNG_DPI) for side in PNG_SIZE_INCHES)
        assert len(picture.convert("L").getcolors()) > 50


def test_the_markdown_has_headline_picture_and_tables(written):
    text = (written / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# CPPO: validation accuracy ")
    assert "](report.png)" in text
    assert "| Model | tiny-qwen3 |" in text
    numbers = text[text.index("## Numbers") :].splitlines()
    assert {line.count(" |") for line in numbers if line.startswith("|")} == {5}


def test_the_same_run_gives_the_same_bytes(written, tmp_path):
    write_report(read_run(written.parent), tmp_path / "again")
    for path in sorted(written.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(path.name for path in written.iterdir()) == ["metrics.csv", "report.html", "report.md", "report.png"]


def test_missing_metrics_are_said_to_be_not_logged(tmp_path):
    write_log(tmp_path / "logs/metrics-1.jsonl", [(1, {"critic/rewards/mean": 0.5}), (2, {"critic/rewards/mean": 0.6})])
    write_report(read_run(tmp_path), tmp_path / "report")
    page = Page((tmp_path / "report/report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert [a["aria-label"] for tag, a in page.tags if tag == "svg"] == [
        "Validation and training reward, first to last value: validation accuracy not logged; "
        "training reward 0.500 to 0.600."
    ]
    assert f"Not logged: {names.EFFECTIVE_BUDGET}, {names.PREFIX_AVERAGE}." in page.text
    assert "the settings are not known" in page.text


@pytest.mark.parametrize("value", [0.0, 1e-9, math.nan, math.inf, -1.0])
def test_odd_values_are_drawn_or_left_out_without_failing(tmp_path, value):
    everything = {name: value for _, row in realistic_steps(5) for name in row}
    write_log(tmp_path / "metrics-1.jsonl", [(0, everything), (1, everything), (7, everything)])
    write_report(read_run(tmp_path), tmp_path / "report")
    assert Page((tmp_path / "report/report.html").read_text(encoding="utf-8")).open == []


def test_names_and_titles_are_text_not_markup(tmp_path):
    source = "<b>$x_1$ & | co"
    write_log(tmp_path / "metrics-1.jsonl", [(s, {f"val-core/{source}/acc/mean@1": 0.5}) for s in (0, 1)])
    content = content_of(read_run(tmp_path), title="<script>*a*</script>")
    page = Page(html_page(read_run(tmp_path), content))
    assert page.open == []
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert "<script>*a*</script>" in page.text and source in page.text
    written = markdown(read_run(tmp_path), content)
    assert r"\<script\>\*a\*\</script\>" in written
    assert r"\<b\>$x\_1$ & \| co" in written
    assert len(write_report(read_run(tmp_path), tmp_path / "report")) == 4  # the picture takes it literally, too


def test_alt_text_gives_first_and_last_value():
    run = run_of({1: {names.EFFECTIVE_BUDGET: 0.02, names.PREFIX_AVERAGE: 0.01}, 2: {names.EFFECTIVE_BUDGET: 0.04}})
    panel = next(panel for panel in PANELS if panel.key == "budget")
    assert alt_text(panel, number_rows(run)) == (
        "Prefix budget, first to last value: effective delta_b 0.0200 to 0.0400; prefix average S/W 0.0100 to 0.0100."
    )


# --- command line -----------------------------------------------------------------------------------------------


def test_out_and_title(tmp_path, capsys):
    write_log(tmp_path / "run/logs/metrics-1.jsonl", realistic_steps(5))
    arguments = command(str(tmp_path / "run"), "--out", str(tmp_path / "elsewhere"), "--title", "A name of my own")
    assert report.run(arguments) == 0
    assert "A name of my own" in (tmp_path / "elsewhere/report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "run/report").exists()
    assert str(tmp_path / "elsewhere/report.html") in capsys.readouterr().out


def test_logs_side_by_side_get_reports_of_their_own(tmp_path):
    for name in ("cppo", "dppo"):
        write_log(tmp_path / f"{name}.jsonl", realistic_steps(5))
        arguments = command(str(tmp_path / f"{name}.jsonl"))
        assert report.run(arguments) == 0
    assert (tmp_path / "cppo-report/report.html").exists() and (tmp_path / "dppo-report/report.html").exists()


def test_errors_are_sentences_on_stderr(tmp_path, capsys):
    assert report.run(command(str(tmp_path / "nowhere"))) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cppo-verl report: ") and "nowhere does not exist" in captured.err


def test_damaged_lines_stop_the_report_unless_skipped(tmp_path, capsys):
    good = [json.dumps({"step": step, "data": {"critic/rewards/mean": 0.5}}) for step in (1, 2)]
    (tmp_path / "metrics-1.jsonl").write_text(f"{good[0]}\n{{broken\n{good[1]}\n")
    assert report.run(command(str(tmp_path))) == 1
    assert "metrics-1.jsonl, line 2" in capsys.readouterr().err
    assert report.run(command(str(tmp_path), "--skip-bad-lines")) == 0
    assert "1 damaged line was skipped" in capsys.readouterr().err
    assert "1 damaged line was skipped" in (tmp_path / "report/report.html").read_text(encoding="utf-8")
