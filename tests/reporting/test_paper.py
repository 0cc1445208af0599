"""The paper's tables and figures: synthetic logs that encode the tables give them back, digit for digit."""

import csv
import io
import math
import shutil
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from cppo_verl import paper
from cppo_verl.reporting import many, metrics, tables
from cppo_verl.reporting.curves import block_means, pictures
from cppo_verl.reporting.labels import Label, LabelError, label_of, method_name, model_key, parse_label
from cppo_verl.reporting.logs import Run
from cppo_verl.reporting.scores import COLLAPSE_RULE, Entry, score_run
from cppo_verl.reporting.study import expand, read_study
from cppo_verl.reporting.template import render
from recipe.methods import KNOB, METHODS, TABLE_1, overrides
from tests.reporting.pages import Page, read_csv, reported, status
from tests.reporting.runs import config, curve, unrounded, write_own, write_run

MODEL = "Qwen3-1.7B-Base"
ROWS = {(row.model, row.method): row for row in paper.breakdown()}
NINE = dict.fromkeys(paper.BENCHMARKS, 9.0)
NAN = math.nan


def scored_run(scores: dict[int, float], **more: dict[int, float]) -> Run:
    """A run whose three benchmarks all score ``scores`` (percent), with other metrics by name."""
    columns = {f"val-core/{name}/acc/mean@16": pd.Series(scores, dtype=float) / 100 for name in paper.BENCHMARKS}
    columns |= {name: pd.Series(values, dtype=float) for name, values in more.items()}
    frame = pd.DataFrame(columns).rename_axis("step").sort_index()
    odd = {name: [s for s, x in values.items() if not math.isfinite(x)] for name, values in more.items()}
    return Run("toy", {}, frame, nonfinite=odd)


def drawn(*runs: Run):
    """By key, the figures of runs of CPPO."""
    entries = [Entry(str(i), Label(MODEL, "CPPO"), run.frame, score_run(run, MODEL)) for i, run in enumerate(runs)]
    return {picture.key: picture for picture in pictures(entries, MODEL)}


def test_logs_that_encode_the_papers_tables_give_them_back(tmp_path):
    """All 28 runs of Table 4, better only before and after the steps that count; what collapsed there does so here."""
    for row in paper.breakdown():
        if row.avg is None:
            scores = curve(dict.fromkeys(paper.BENCHMARKS, 40.0), {20: 0.9, 40: 0.01, 60: 0.01, row.t_stop: 0.01})
        else:
            levels = {0: 1.3, 20: 0.7, row.t_stop - 20: 1.0, row.t_stop: 0.9, row.t_stop + 20: 1.3}
            scores = curve(unrounded(row), levels)
        write_run(tmp_path, row.model, row.method, scores)
    study = read_study([tmp_path], {})
    results = tables.results_of(study.entries)
    assert results is not None
    ours = {"table1_best_avg16": tables.table1_csv(results), "table4_breakdown": tables.table4_csv(results)}
    for name, text in ours.items():
        printed = list(csv.reader((files(paper) / f"{name}.csv").read_text(encoding="utf-8").splitlines()))
        assert [row[: len(printed[0])] for row in csv.reader(io.StringIO(text))] == printed
    rows = list(csv.DictReader(io.StringIO(ours["table4_breakdown"])))
    assert {row[f"{name}_difference"] for row in rows for name in tables.COLUMNS} == {"+0.00", ""}
    collapsed = [(row["model"], row["method"], row["state"]) for row in rows if row["state"] != "scored"]
    assert collapsed == [("Qwen3-30B-A3B-Base", "CISPO", "collapse")]
    assert all(int(row["t_stop"]) - int(row["step"]) == 20 for row in rows if row["step"])
    page = tmp_path / "page.html"
    page.write_text(many.html_page(study, results, {}, {model: [] for model in study.models()}, None))
    text = Page(page).text
    assert "Of the 28 rows of the paper's Table 4, 27 are scored, 1 collapsed, 0 without a score and 0 missing" in text
    for row in paper.breakdown():
        assert all((paper.COLLAPSE if row.avg is None else f"{getattr(row, x):.2f}") in text for x in tables.COLUMNS)
    assert COLLAPSE_RULE in text
    one, four = (render(f"table{n}.tex", results=results, tables=tables) for n in (1, 4))
    assert four.count(r"\\") == 1 + 4 + 2 * 28
    assert four.count("{") == four.count("}") and one.count("{") == one.count("}")
    assert r" & CPPO & 34.79 & 30.63 & 30.21 & \textbf{31.88} & 1100 \\" in four
    assert r"CISPO & 28.82 & 11.87 & 29.58 & \textit{collapse} \\" in one and r"\textbf{54.79}" in one


def test_seeds_missing_empty_and_unfinished_runs_are_shown_as_such_on_an_accessible_page(tmp_path):
    """Three seeds of CPPO, three of GRPO of which one collapsed, an ablation, an unfinished and an empty run."""
    runs, row, whole = tmp_path / "runs", ROWS[MODEL, "CPPO"], {0: 0.2, 60: 0.5, 300: 0.8, 640: 1.0, 680: 0.9}
    for seed, shift in (("1", -1.0), ("2", 0.0), ("3", 1.0)):
        best = {name: value + shift for name, value in unrounded(row).items()}
        write_run(runs, MODEL, "CPPO", curve(best, whole), f"cppo-seed{seed}")
        fallen = {0: 0.2, 60: 0.5, 300: 0.8, 640: 0.1, 680: 0.1}
        write_run(runs, MODEL, "GRPO", curve(best, fallen if seed == "3" else whole), f"grpo-seed{seed}")
    write_run(runs, MODEL, "CPPO", curve(unrounded(row), whole), "cppo_soft", gate="soft")
    write_run(runs, MODEL, "DPPO", curve(unrounded(row), {0: 0.2, 380: 0.9, 420: 0.8}), "dppo")
    empty = runs / model_key(MODEL) / "trm_max"
    empty.mkdir()
    (empty / "config.yaml").write_text(yaml.safe_dump(config(MODEL, "TRM-Max", "trm_max")))
    own = write_own(tmp_path, "grpo", 0, {10: 0.5}, end=12)  # a model that is not the paper's, beside it
    out = reported(runs, own, "--out", tmp_path / "report")

    rows = {(row["model"], row["method"]): row for row in read_csv(out / "table4.csv")}
    keys = ("avg", "n", "collapsed", "state", "avg_standard_error", "avg_difference")
    cppo, grpo, dppo, trm = (tuple(map(rows[MODEL, x].get, keys)) for x in ("CPPO", "GRPO", "DPPO", "TRM-Max"))
    assert cppo == ("12.78", "3", "0", "scored", "0.58", "+0.00")  # -1, 0, 1: 1 over the root of 3
    assert grpo[:5] == ("12.28", "2", "1", "scored", "0.50")
    assert (dppo[1], dppo[4], trm[0]) == ("1", "", "no score")
    assert len(rows) == 28 and rows["Qwen3-8B-Base", "CPPO"]["avg"] == "missing"
    page = Page(out / "report.html")
    for said in ("± 0.58 (3)", "1 of 3 collapsed", "so far, to step 420", "Paired differences", "Another gate"):
        assert said in page.text
    assert page.text.count("missing") >= 24
    runs_csv = {row["path"].rpartition("/")[2]: row for row in read_csv(out / "runs.csv")}
    assert len(runs_csv) == 10
    assert runs_csv["trm_max"]["remarks"] == "no step was logged"
    assert runs_csv["grpo-seed3"]["remarks"].startswith("score below half of ")
    assert (runs_csv["cppo-seed2"]["method"], runs_csv["cppo-seed2"]["seed"]) == ("CPPO", "2")
    page.check_self_contained()
    assert len(page.drawings()) > 6 and all("Last values: " in words for words in page.drawings())
    assert all("scope" in attributes for attributes in page.attributes("th"))
    assert len(page.attributes("caption")) == len(page.attributes("table"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert "@media print" in page.source and {"name": "color-scheme", "content": "light"} in page.attributes("meta")
    figures = {path.name for path in (out / "figures").glob("qwen3*")}
    kinds = ("validation", "ablations", "warm-up", "training")
    assert figures == {f"qwen3_1p7b_base-{kind}.{end}" for kind in kinds for end in ("png", "pdf")}
    with Image.open(out / "figures/qwen3_1p7b_base-training.png") as picture:
        assert picture.size[0] >= 1000 and len(picture.convert("L").getcolors()) > 50
    assert (out / "figures/qwen3_1p7b_base-training.pdf").read_bytes().startswith(b"%PDF-")


def test_the_parts_of_a_score_are_of_its_step_and_without_a_score_the_reason_is_said():
    run = scored_run({20: 10.0, 40: 10.0, 60: 99.0})
    run.frame["val-core/aime24/acc/mean@16"] = [0.40, 0.10, NAN]  # a step that lacks a benchmark does not count
    run.frame["val-core/aime26/acc/mean@16"] = [0.10, 0.55, 0.99]
    score = score_run(run, MODEL)
    assert score.step == 40
    assert score.best == pytest.approx({"aime24": 10.0, "aime25": 10.0, "aime26": 55.0, "avg": 25.0})
    assert "no validation accuracy" in score_run(scored_run({}, **{"actor/grad_norm": {1: 1.0}}), MODEL).absent
    assert "up to T_stop" in score_run(scored_run({700: 10.0}), MODEL).absent
    partial = scored_run({20: 10.0})
    renamed = {"val-core/aime25/acc/mean@16": "val-core/aime25/acc/mean@4"}
    score = score_run(Run("toy", {}, partial.frame.rename(columns=renamed)), MODEL)
    assert score.best["avg"] == pytest.approx(10.0)
    assert score.notes == ("aime25 was validated with 4 answers a prompt, not 16",)
    del partial.frame["val-core/aime26/acc/mean@16"]
    assert score_run(partial, MODEL).absent == "not validated on aime26"


def falling(*scores: float) -> dict[int, float]:
    return {20 * (i + 1): float(x) for i, x in enumerate(scores)}


@pytest.mark.parametrize(
    ("scores", "norms", "step"),
    [
        (falling(10, 20, 9, 9), {}, 60),
        (falling(10, 20, 9, 11, 9), {}, None),  # recovers to more than half, and a single low one does not count
        (falling(1.9, 0.1, 0.1), {}, None),  # too near to zero to fall from
        (falling(30, 14, 14, 40, 19, 1), {}, 100),
        ({20: 10.0, 680: 12.0, 700: 0.1, 720: 0.1, 740: 0.1}, {}, None),  # after T_stop
        (falling(9, 9), {1: 1.0, 2: NAN, 3: math.inf, 4: NAN}, 2),
        (falling(9, 9), {1: NAN, 2: NAN, 3: NAN, 4: 1.0, 5: NAN, 6: NAN}, None),  # it passed, and two are too few
        (falling(9, 9), {700: NAN, 701: NAN, 702: NAN}, None),  # after T_stop
    ],
)
def test_collapse_is_a_fall_below_half_or_a_broken_gradient_that_lasts(scores, norms, step):
    score = score_run(scored_run(scores, **({metrics.GRAD_NORM: norms} if norms else {})), MODEL)
    assert score.collapsed_at == step
    assert step is None or ("not finite" if norms else "below half of ") in score.collapse


def test_every_method_of_the_recipes_is_labelled():
    environment = {"DELTA": "0.15", "DELTA_B": "0.02", "W_MIN": "0.8", "BUDGET": "quantile"}
    for name in METHODS:
        pairs = [text.split("=") for text in overrides(name, environment) if text.startswith(KNOB)]
        settings = {key.removeprefix(KNOB): yaml.safe_load(value) for key, value in pairs}
        label = label_of(settings | {"experiment": f"{name}-seed1", "project": "qwen3_1p7b_base"}, Path("run"))
        assert label.seed == "1" and label.model == MODEL
        assert (label.method in paper.METHODS) == (name in TABLE_1), name


VERL = {"project": "verl_examples", "experiment": "gsm8k", "model": "/data/Qwen3-1.7B-Base/", "loss_mode": "cppo"}
QUICK = {"project": "quickstart", "experiment": "cppo", "model": "runs/tiny-qwen3-seed2", "data_seed": 2}


@pytest.mark.parametrize(
    ("settings", "place", "label"),
    [
        ({"project": "qwen3_8b_base", "experiment": "trm_avg-seed12"}, "runs/x", ("Qwen3-8B-Base", "TRM-Avg", "12")),
        (VERL | {"gate": "soft"}, "runs/x", (MODEL, "cppo soft", "")),
        (VERL | {"gate": "hard"}, "runs/x", (MODEL, "CPPO", "")),
        ({}, "logs/qwen3_1p7b/dppo-seed2.jsonl", ("Qwen3-1.7B", "DPPO", "2")),
        (QUICK, "runs/quickstart-cppo-seed2-ranks1", ("tiny-qwen3", "CPPO", "2")),
        (QUICK | {"data_seed": 7}, "runs/x", ("tiny-qwen3", "CPPO", "7")),
    ],
)
def test_runs_are_known_by_their_settings_or_their_place(settings, place, label):
    assert label_of(settings, Path(place)) == Label(*label)


def test_a_label_on_the_command_line_overrides_the_config_and_needs_a_run(tmp_path, capsys):
    assert [method_name(x) for x in ("trm_max", "TRM Avg", "dppo_tv", "mine")] == ["TRM-Max", "TRM-Avg", "DPPO", "mine"]
    assert parse_label("runs/a=b=qwen3_1p7b/cppo/7") == ("runs/a=b", Label("Qwen3-1.7B", "CPPO", "7"))
    for text in ("runs/a", "=m/cppo", "runs/a=m/cppo/1/2", "runs/a=m/"):
        with pytest.raises(LabelError, match="PATH=MODEL/METHOD"):
            parse_label(text)
    run = write_run(tmp_path / "runs", MODEL, "CPPO", {20: NINE, 680: NINE})
    (entry,) = read_study([run], {str(run): Label("Qwen3-8B-Base", "MinPRO", "4")}).entries
    assert entry.label == Label("Qwen3-8B-Base", "MinPRO", "4")
    remarks = "; ".join(entry.remarks())
    assert "not the paper's setting: prompts is 64, the paper's 128" in remarks
    assert "loss_mode is cppo, the paper's minpro" in remarks
    assert status(run, "--label", "elsewhere=m/cppo", "--out", tmp_path / "out") == 1
    assert "elsewhere, which is not among the runs" in capsys.readouterr().err


def test_an_ablation_stands_beside_cppo_by_the_first_knob_that_differs(tmp_path):
    knobs = {"cppo": {}, "cppo_w_min_0.6": {"w_min": 0.6}, "odd": {"w_min": 0.5, "gate": "soft"}, "same": {}}
    for name, own in knobs.items():
        write_run(tmp_path, MODEL, "CPPO", {20: NINE, 40: NINE}, name, **own)
    write_run(tmp_path, MODEL, "DPPO", {20: NINE, 40: NINE}, "dppo")
    write_run(tmp_path, MODEL, "DPPO", {20: NINE, 40: NINE}, "dppo_kl", divergence="kl")
    (found,) = (x for x in pictures(read_study([tmp_path], {}).entries, MODEL) if x.key == "ablations")
    assert {panel.title: [line.name for line in panel.lines] for panel in found.panels} == {
        "Another w_min": ["CPPO", "cppo_w_min_0.6"],
        "Another gate": ["CPPO", "odd"],
        "Another rule": ["CPPO", "dppo_kl", "same"],
    }


def test_validation_curves_are_not_smoothed_and_collapsed_seeds_are_not_in_the_mean():
    rising, higher, fallen = falling(5, 7, 9, 10), falling(7, 9, 11, 12), falling(5, 7, 0.1, 0.1)
    picture = drawn(*map(scored_run, (rising, higher, fallen)))["validation"]
    (line,) = picture.lines
    assert "not smoothed" in picture.caption
    assert line.values.to_dict() == pytest.approx({20: 6.0, 40: 8.0, 60: 10.0, 80: 11.0})
    assert line.error is not None and line.error.to_dict() == pytest.approx(dict.fromkeys(rising, 1.0))
    assert len(line.seeds) == 3 and line.best == ((80, pytest.approx(10.0)), (80, pytest.approx(12.0)))
    short = ({20: 4.0, 40: 6.0}, {20: 6.0, 40: 8.0, 60: 90.0})
    (line,) = drawn(*map(scored_run, short))["validation"].lines  # averaged where all have a value
    assert line.values.to_dict() == pytest.approx({20: 5.0, 40: 7.0})


def test_training_is_drawn_in_means_the_warm_up_step_by_step_and_what_was_not_logged_not_at_all():
    values = pd.Series({step: float(step) for step in range(1, 8)})
    assert block_means(values, 3).to_dict() == {2.0: 2.0, 5.0: 5.0, 8.0: 7.0}
    reward = {"critic/rewards/mean": {step: float(step) for step in range(1, 401)}}
    bins = {name: {1: float(i), 2: float(i + 2)} for i, name in enumerate(metrics.BY_POSITION)}
    found = drawn(scored_run({400: 9.0}, **reward, **bins))
    values = found["training"].lines[0].values
    assert "Figure 9" in found["training"].heading and (values[3.0], values[8.0]) == (3.0, 8.0)
    assert found["training"].caption.startswith("Each point is the mean of 5 steps.")
    assert "Not logged: response length, tokens, entropy" in found["training"].caption
    warm_up = found["warm-up"]
    assert "not smoothed" in warm_up.caption
    assert warm_up.lines[0].values.to_dict() == {step: float(step) for step in range(1, 69)}  # T_stop 680
    assert found["positions"].lines[0].values.to_list() == [float(i + 1) for i in range(8)]
    assert drawn(scored_run({}, **{"perf/throughput": {1: 1.0}})) == {}


def test_which_runs_are_found_and_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cppo_verl.reporting.curves.pictures", lambda *_: [])
    cppo, dppo = (write_run(tmp_path / "runs", MODEL, method, {20: NINE, 40: NINE}) for method in ("CPPO", "DPPO"))
    assert (reported(cppo, "--tables") / "table1.csv").exists()
    assert expand(cppo.parent) == expand(tmp_path / "runs") == [cppo, dppo]  # not the report
    assert status(cppo, tmp_path / "nowhere") == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    other = tmp_path / "verl/qwen3_8b_base"  # verl's own naming is a run a file
    other.mkdir(parents=True)
    for seed in (1, 2):
        shutil.copy(cppo / "logs/metrics-1.jsonl", other / f"cppo-seed{seed}.jsonl")
    entries = read_study([other], {}).entries
    assert [entry.label for entry in entries] == [Label("Qwen3-8B-Base", "CPPO", str(i)) for i in (1, 2)]
    again = shutil.copytree(cppo, cppo.parent / "again")
    log = cppo / "logs/metrics-1.jsonl"
    log.write_text(log.read_text().replace('"data": {', '"data": {"perf/mfu": 1.0, '))
    study = read_study([cppo, cppo, again], {})
    assert [entry.label for entry in study.entries] == [Label(MODEL, "CPPO")] * 2
    assert "given more than once" in study.notes[0] and study.notes[1].startswith(f"2 runs are {MODEL} CPPO")
    frame = study.entries[0].frame
    assert metrics.TIME_STEP in frame and "perf/mfu" not in frame  # what is not drawn
