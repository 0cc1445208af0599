"""The report over many runs: synthetic logs that encode the paper's tables give these tables back, digit for digit."""

import csv
import json
import math
import shutil
import tracemalloc
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from cppo_verl import paper
from cppo_verl.cli import report
from cppo_verl.reporting import names, tables
from cppo_verl.reporting.ablations import differences, groups, panels_of, reference_knobs
from cppo_verl.reporting.columns import Columns
from cppo_verl.reporting.curves import block_means, diagnostics, pictures, positions, validation, warm_up
from cppo_verl.reporting.labels import Label, LabelError, knobs_of, label_of, method_name, model_key, parse_label
from cppo_verl.reporting.logs import LogError, Run, read_run
from cppo_verl.reporting.rollouts import read_dump
from cppo_verl.reporting.scores import Entry, broken_gradient, collapse, estimate, score_run
from cppo_verl.reporting.study import expand, read_study
from recipe.methods import ABLATIONS, KNOB, METHODS, TABLE_1, overrides
from tests.reporting.paper_runs import collapsing, config, curve, unrounded, write_paper, write_run
from tests.reporting.test_report import Page, command, self_contained

MODEL = "Qwen3-1.7B-Base"
FEW = ("critic/rewards/mean", names.GRAD_NORM)
ROWS = {(row.model, row.method): row for row in paper.breakdown()}


def scored_run(scores: dict[int, float], **more: dict[int, float]) -> Run:
    """A run whose three benchmarks all score ``scores`` (percent), with other metrics by name."""
    columns = {f"val-core/{name}/acc/mean@16": pd.Series(scores, dtype=float) / 100 for name in paper.BENCHMARKS}
    columns |= {name: pd.Series(values, dtype=float) for name, values in more.items()}
    frame = pd.DataFrame(columns).rename_axis("step").sort_index()
    odd = {name: np.array([s for s, x in values.items() if not math.isfinite(x)]) for name, values in more.items()}
    return Run("toy", {}, frame, (), (), odd)


def study_report(*arguments: str) -> Path:
    """The report of the command line; its directory is the value of --out."""
    assert report.run(command(*arguments)) == 0
    return Path(arguments[arguments.index("--out") + 1])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The report over all 28 runs, with few of the pictures of each model: ``mixed`` has them all."""
    folder = tmp_path_factory.mktemp("whole")
    write_paper(folder / "runs", logged=FEW)
    return study_report(str(folder / "runs"), "--out", str(folder / "report"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Three seeds of CPPO, three of GRPO of which one collapsed, ablations, an unfinished and an empty run."""
    folder = tmp_path_factory.mktemp("mixed")
    runs = folder / "runs"
    row = ROWS[MODEL, "CPPO"]
    for seed, shift in (("1", -1.0), ("2", 0.0), ("3", 1.0)):
        best = {name: value + shift for name, value in unrounded(row).items()}
        write_run(runs, MODEL, "CPPO", curve(best, 680, 640, int(seed)), f"cppo-seed{seed}", every=40)
        scores = collapsing(best, 680, 300) if seed == "3" else curve(best, 680, 600, int(seed))
        write_run(runs, MODEL, "GRPO", scores, f"grpo-seed{seed}", every=40)
    soft = {name: value - 0.5 for name, value in unrounded(row).items()}
    write_run(runs, MODEL, "CPPO", curve(soft, 680, 660), "cppo_soft", every=40, gate="soft")
    write_run(runs, MODEL, "DPPO", curve(soft, 400, 380), "dppo", every=40)
    empty = runs / model_key(MODEL) / "trm_max"
    empty.mkdir()
    (empty / "config.yaml").write_text(yaml.safe_dump(config(MODEL, "TRM-Max", "trm_max")))
    return study_report(str(runs), "--out", str(folder / "report"))


# --- the paper's tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "name"), [("table1.csv", "table1_best_avg16"), ("table4.csv", "table4_breakdown")])
def test_logs_that_encode_the_papers_tables_give_them_back(whole, ours, name):
    with (files(paper) / f"{name}.csv").open(encoding="utf-8") as stream:
        printed = list(csv.reader(stream))
    with (whole / ours).open(encoding="utf-8") as stream:
        written = [row[: len(printed[0])] for row in csv.reader(stream)]
    assert written == printed
    assert len(printed) == {"table1.csv": 8, "table4.csv": 29}[ours]


def test_every_difference_from_the_paper_is_then_zero(whole):
    rows = read_csv(whole / "table4.csv")
    assert {row[f"{name}_difference"] for row in rows for name in tables.COLUMNS} == {"+0.00", ""}
    collapsed = [row for row in rows if row["state"] != "scored"]
    assert [(row["model"], row["method"], row["state"]) for row in collapsed] == [
        ("Qwen3-30B-A3B-Base", "CISPO", "collapse")
    ]
    assert all(1 <= int(row["step"]) <= int(row["t_stop"]) < int(row["last_step"]) for row in rows if row["step"])


def test_three_printed_means_are_not_those_of_the_printed_parts():
    def mean(row):
        return round(sum(getattr(row, name) for name in paper.BENCHMARKS) / 3, 2)

    odd = [(row.model, row.method, row.avg, mean(row)) for row in paper.breakdown() if row.avg and mean(row) != row.avg]
    assert odd == [
        ("Qwen3-8B-Base", "TRM-Avg", 27.98, 27.99),
        ("Qwen3-30B-A3B-Base", "TRM-Max", 20.27, 20.28),
        ("Qwen3-30B-A3B-Base", "TRM-Avg", 48.96, 48.95),
    ]


def test_the_page_holds_both_tables_in_full(whole):
    page = Page((whole / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert "Of the 28 rows of the paper's Table 4, 27 are scored, 1 collapsed and 0 are missing" in text
    for row in paper.breakdown():
        scores = [paper.COLLAPSE] if row.avg is None else [f"{getattr(row, name):.2f}" for name in tables.COLUMNS]
        assert all(score in text for score in scores)
    assert text.count(paper.COLLAPSE) > 3
    assert tables.COLLAPSE_RULE in text


def test_latex_has_every_row_and_escapes(whole):
    text = (whole / "table4.tex").read_text()
    assert text.count(r"\\") == 1 + 4 + 2 * 28
    assert text.count("{") == text.count("}")
    assert r" & CPPO & 34.79 & 30.63 & 30.21 & \textbf{31.88} & 1120 \\" in text
    one = (whole / "table1.tex").read_text()
    assert r"CISPO & 28.82 & 11.87 & 29.58 & \textit{collapse} \\" in one
    assert r"\textbf{54.79}" in one


# --- seeds, missing runs, unfinished runs ---------------------------------------------------------------------------


def test_seeds_are_a_mean_with_its_standard_error_and_collapsed_ones_are_counted(mixed):
    rows = {row["method"]: row for row in read_csv(mixed / "table4.csv") if row["model"] == MODEL}
    cppo, grpo = rows["CPPO"], rows["GRPO"]
    assert (cppo["avg"], cppo["n"], cppo["collapsed"]) == ("12.78", "3", "0")
    assert cppo["avg_standard_error"] == "0.58"  # -1, 0, 1: standard deviation 1, over the root of 3
    assert cppo["avg_difference"] == "+0.00"
    assert (grpo["avg"], grpo["n"], grpo["collapsed"], grpo["state"]) == ("12.28", "2", "1", "scored")
    assert grpo["avg_standard_error"] == "0.50"
    text = Page((mixed / "report.html").read_text(encoding="utf-8")).text
    assert "± 0.58 (3)" in text and "1 of 3 collapsed" in text


def test_missing_empty_and_unfinished_runs_are_shown_as_such(mixed):
    rows = {(row["model"], row["method"]): row for row in read_csv(mixed / "table4.csv")}
    assert len(rows) == 28
    assert rows["Qwen3-8B-Base", "CPPO"]["avg"] == tables.MISSING
    assert rows[MODEL, "TRM-Max"]["avg"] == "no score"
    assert rows[MODEL, "DPPO"]["state"] == "scored"
    page = Page((mixed / "report.html").read_text(encoding="utf-8"))
    assert page.text.count(tables.MISSING) >= 24
    assert "so far, to step 420" in page.text
    runs = {row["path"].rpartition("/")[2]: row for row in read_csv(mixed / "runs.csv")}
    assert len(runs) == 9
    assert runs["trm_max"]["remarks"] == "no step was logged"
    assert runs["grpo-seed3"]["remarks"].startswith("score below half of ")
    assert (runs["cppo-seed2"]["method"], runs["cppo-seed2"]["seed"]) == ("CPPO", "2")


def test_estimate_of_one_value_has_no_error():
    assert estimate([3.0]).error is None
    assert estimate([1.0, 3.0]).error == pytest.approx(1.0)  # standard deviation root 2, over root 2


# --- the score ------------------------------------------------------------------------------------------------------


def test_the_best_step_is_within_t_stop_and_after_training_began():
    score = score_run(scored_run({0: 50.0, 20: 8.0, 680: 9.0, 700: 60.0}), MODEL)
    assert (score.step, score.last_step) == (680, 700)
    assert score.mean == pytest.approx(9.0)


def test_the_mean_is_unweighted_and_its_parts_are_of_the_same_step():
    run = scored_run({20: 10.0, 40: 10.0})
    run.frame["val-core/aime24/acc/mean@16"] = [0.40, 0.10]
    run.frame["val-core/aime26/acc/mean@16"] = [0.10, 0.55]
    score = score_run(run, MODEL)
    assert score.step == 40
    assert score.by_benchmark == pytest.approx({"aime24": 10.0, "aime25": 10.0, "aime26": 55.0})
    assert score.mean == pytest.approx(25.0)


def test_a_step_that_lacks_a_benchmark_does_not_count():
    run = scored_run({20: 10.0, 40: 99.0})
    run.frame.loc[40, "val-core/aime25/acc/mean@16"] = math.nan
    assert score_run(run, MODEL).step == 20


def test_why_there_is_no_score():
    assert "no validation accuracy" in score_run(scored_run({}, **{"actor/grad_norm": {1: 1.0}}), MODEL).absent
    partial = scored_run({20: 10.0})
    del partial.frame["val-core/aime26/acc/mean@16"]
    assert score_run(partial, MODEL).absent == "not validated on aime26"
    assert "up to T_stop" in score_run(scored_run({700: 10.0}), MODEL).absent


def test_another_number_of_answers_is_scored_and_said():
    run = scored_run({20: 10.0})
    frame = run.frame.rename(columns={"val-core/aime25/acc/mean@16": "val-core/aime25/acc/mean@4"})
    score = score_run(Run("toy", {}, frame, (), ()), MODEL)
    assert score.mean == pytest.approx(10.0)
    assert score.notes == ("aime25 was validated with 4 answers a prompt, not 16",)


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([10, 20, 9, 9], (60, 20.0)),
        ([10, 20, 9, 11, 9], None),  # recovers to more than half, and a single low validation does not count
        ([10, 20, 11, 10.5], None),
        ([10, 20, 9], None),
        ([1.9, 0.1, 0.1], None),  # too near to zero to fall from
        ([20, 5, 5], (40, 20.0)),
        ([30, 14, 14, 40, 19, 1], (100, 40.0)),
    ],
)
def test_collapse_is_a_fall_below_half_that_lasts(scores, found):
    counted = pd.Series([float(x) for x in scores], index=[20 * (i + 1) for i in range(len(scores))])
    assert collapse(counted) == found


def test_a_gradient_that_stays_nan_is_a_collapse_and_a_passing_one_is_not():
    bad = math.nan
    lasting = scored_run({10: 9.0, 20: 9.0}, **{names.GRAD_NORM: {1: 1.0, 2: bad, 3: math.inf, 4: bad}})
    assert broken_gradient(lasting, 680) == 2
    assert score_run(lasting, MODEL).collapsed_at == 2
    passing = scored_run({10: 9.0, 20: 9.0}, **{names.GRAD_NORM: {1: bad, 2: bad, 3: bad, 4: 1.0, 5: bad, 6: bad}})
    assert broken_gradient(passing, 680) is None
    assert broken_gradient(scored_run({10: 9.0}, **{names.GRAD_NORM: {700: bad, 701: bad, 702: bad}}), 680) is None


def test_a_collapse_after_t_stop_does_not_count():
    scores = {20: 10.0, 680: 12.0, 700: 0.1, 720: 0.1, 740: 0.1}
    assert score_run(scored_run(scores), MODEL).collapsed_at is None


# --- labels ---------------------------------------------------------------------------------------------------------


def test_recipes_label_their_runs():
    settings = {"project": "qwen3_8b_base", "experiment": "trm_avg-seed12", "model": "/models/other"}
    assert label_of(settings, Path("runs/x")) == Label("Qwen3-8B-Base", "TRM-Avg", "12")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_recipes_is_labelled_and_drawn(name):
    environment = {"DELTA": "0.15", "DELTA_B": "0.02", "W_MIN": "0.8", "BUDGET": "quantile"}
    pairs = [text.split("=") for text in overrides(name, environment) if text.startswith(KNOB)]
    loss = yaml.safe_load((files("cppo_verl.conf.trust_region") / f"{METHODS[name].preset}.yaml").read_text())
    preset = loss["actor_rollout_ref"]["actor"]["policy_loss"]
    settings = preset | {key.removeprefix(KNOB): yaml.safe_load(value) for key, value in pairs}
    settings |= {"experiment": f"{name}-seed1", "project": "qwen3_1p7b_base"}
    label = label_of(settings, Path("run"))
    assert label.seed == "1" and label.model == MODEL
    assert (label.method in paper.METHODS) == (name in TABLE_1)
    entry = Entry("run", label, None, score_run(scored_run({20: 10.0}), MODEL), knobs_of(label, settings))
    by_config = panels_of(entry, reference_knobs([], MODEL))
    by_name = panels_of(Entry("run", label, None, entry.score, knobs_of(label, {})), reference_knobs([], MODEL))
    assert by_config == by_name
    if name in ABLATIONS and not name.startswith(("cppo_delta_b_0.020", "cppo_w_min_0.8")):
        expected = {"weights_only": "mechanisms", "budget_only": "mechanisms", "shuffled": "weights", "soft": "gate",
                    "kl": "divergence", "max_avg": "sequence", "binary": "estimator"}  # fmt: skip
        expected |= {f"delta_b_{x}": "delta_b" for x in ("0.010", "0.015", "0.030")}
        expected |= {f"w_min_{x}": "w_min" for x in ("0.6", "0.7", "0.9")}
        key = next(key for end, key in expected.items() if name.endswith(end))
        assert key in by_config


def test_a_run_without_a_recipes_names_is_known_by_model_and_knobs():
    settings = {"project": "verl_examples", "experiment": "gsm8k", "model": "/data/Qwen3-1.7B-Base/",
                "loss_mode": "cppo", "gate": "soft"}  # fmt: skip
    assert label_of(settings, Path("runs/x")) == Label(MODEL, "cppo soft", "")
    assert label_of(settings | {"gate": "hard"}, Path("runs/x")).method == "CPPO"


def test_a_log_without_a_config_is_known_by_its_path():
    assert label_of({}, Path("logs/qwen3_1p7b/dppo-seed2.jsonl")) == Label("Qwen3-1.7B", "DPPO", "2")


def test_spellings():
    assert [method_name(x) for x in ("trm_max", "TRM Avg", "dppo_tv", "mine")] == ["TRM-Max", "TRM-Avg", "DPPO", "mine"]
    assert model_key("Qwen/Qwen3-30B-A3B-Base") == "qwen3_30b_a3b_base"
    assert parse_label("runs/a=b=qwen3_1p7b/cppo/7") == ("runs/a=b", Label("Qwen3-1.7B", "CPPO", "7"))


@pytest.mark.parametrize("text", ["runs/a", "runs/a=cppo", "=m/cppo", "runs/a=m/cppo/1/2", "runs/a=m/"])
def test_a_label_of_another_form_is_refused(text):
    with pytest.raises(LabelError, match="PATH=MODEL/METHOD"):
        parse_label(text)


def test_a_label_on_the_command_line_overrides_the_config(tmp_path):
    run = write_run(tmp_path / "runs", MODEL, "CPPO", curve(dict.fromkeys(paper.BENCHMARKS, 9.0), 680, 680), logged=FEW)
    out = study_report(str(run), "--label", f"{run}=qwen3_8b_base/minpro/4", "--out", str(tmp_path / "out"))
    (row,) = read_csv(out / "runs.csv")
    assert (row["model"], row["method"], row["seed"]) == ("Qwen3-8B-Base", "MinPRO", "4")
    assert "not the paper's setting: prompts is 64, the paper's 128" in row["remarks"]
    assert "loss_mode is cppo, the paper's minpro" in row["remarks"]


def test_a_label_for_a_stranger_is_an_error(tmp_path, capsys):
    run = write_run(tmp_path / "runs", MODEL, "CPPO", {20: dict.fromkeys(paper.BENCHMARKS, 9.0)})
    assert report.run(command(str(run), "--label", "elsewhere=m/cppo", "--out", str(tmp_path / "out"))) == 1
    assert "elsewhere, which is not among the runs" in capsys.readouterr().err


# --- ablations ------------------------------------------------------------------------------------------------------


def test_a_knob_that_another_leaves_without_effect_is_no_difference():
    reference = {"divergence": "tv", "delta": 0.15, "delta_b": 0.02, "budget": "quantile", "w_min": 0.8}
    assert differences({"divergence": "kl", "delta": 0.1, "delta_b": 0.002}, reference) == {"divergence": "kl"}
    assert differences({"budget": "none", "delta_b": 0.5}, reference) == {"budget": "none"}
    assert differences({"budget": "none", "w_min": 0.6}, reference) == {"budget": "none", "w_min": 0.6}


def test_ablation_panels_name_what_differs_and_leave_no_run_out(tmp_path):
    best = dict.fromkeys(paper.BENCHMARKS, 9.0)
    for name, knobs in (
        ("cppo", {}),
        ("cppo_w_min_0.6", {"w_min": 0.6}),
        ("cppo_weights_only", {"budget": "none"}),
        ("odd", {"w_min": 0.5, "gate": "soft"}),
    ):
        write_run(tmp_path, MODEL, "CPPO", {20: best, 40: best}, name, **knobs)
    write_run(tmp_path, MODEL, "DPPO", {20: best, 40: best}, "dppo")
    entries = read_study([tmp_path], {}).entries
    found = {group.key: [name for name, _ in group.members] for group in groups(entries, MODEL)}
    assert found == {
        "mechanisms": ["CPPO", "DPPO", "no prefix budget"],
        "w_min": ["CPPO", "w_min 0.6"],
        "other": ["CPPO", "soft gate, w_min 0.5"],
    }


# --- figures --------------------------------------------------------------------------------------------------------


def entry_of(run: Run, method: str, seed: str = "") -> Entry:
    return Entry(f"{method}{seed}", Label(MODEL, method, seed), run, score_run(run, MODEL))


def test_validation_curves_are_not_smoothed_and_collapsed_seeds_are_not_in_the_mean():
    rising = {20: 5.0, 40: 7.0, 60: 9.0, 80: 10.0}
    higher = {20: 7.0, 40: 9.0, 60: 11.0, 80: 12.0}
    fallen = {20: 5.0, 40: 7.0, 60: 0.1, 80: 0.1}
    entries = [entry_of(scored_run(x), "CPPO", str(i)) for i, x in enumerate((rising, higher, fallen))]
    picture = validation({"CPPO": entries}, MODEL)
    assert picture is not None and "not smoothed" in picture.caption
    (line,) = picture.panels[0].lines
    assert line.mean.to_dict() == pytest.approx({20: 6.0, 40: 8.0, 60: 10.0, 80: 11.0})
    assert line.error.to_dict() == pytest.approx(dict.fromkeys(rising, 1.0))
    assert len(line.seeds) == 3
    assert line.best == ((80, pytest.approx(10.0)), (80, pytest.approx(12.0)))
    assert line.collapsed == ((60, pytest.approx(0.1)),)


def test_seeds_of_different_length_are_averaged_where_all_have_a_value():
    entries = [entry_of(scored_run(x), "CPPO") for x in ({20: 4.0, 40: 6.0}, {20: 6.0, 40: 8.0, 60: 90.0})]
    picture = validation({"CPPO": entries}, MODEL)
    assert picture is not None
    assert picture.panels[0].lines[0].mean.to_dict() == pytest.approx({20: 5.0, 40: 7.0})


def test_training_is_drawn_in_means_of_as_many_steps_as_the_caption_says():
    values = pd.Series({step: float(step) for step in range(1, 8)})
    assert block_means(values, 3).to_dict() == {2.0: 2.0, 5.0: 5.0, 8.0: 7.0}
    run = scored_run({400: 9.0}, **{"critic/rewards/mean": {step: float(step) for step in range(1, 401)}})
    picture = diagnostics({"CPPO": [entry_of(run, "CPPO")]}, MODEL)
    assert picture is not None
    assert picture.caption.startswith("Each point is the mean of 5 steps.")
    assert "Not logged: response length, entropy" in picture.caption
    assert picture.figure == "Figure 9"
    (panel,) = picture.panels
    assert panel.lines[0].mean.iloc[:2].to_dict() == {3.0: 3.0, 8.0: 8.0}


def test_warm_up_is_the_first_tenth_step_by_step():
    run = scored_run({400: 9.0}, **{names.MASKED: dict.fromkeys(range(1, 401), 0.25)})
    picture = warm_up({"CPPO": [entry_of(run, "CPPO")]}, MODEL)
    assert picture is not None and "not smoothed" in picture.caption
    (panel,) = picture.panels
    assert panel.lines[0].mean.index.tolist() == list(range(1, 69))  # T_stop 680
    assert set(panel.lines[0].mean) == {25.0}


def test_positions_say_where_they_come_from(tmp_path):
    bins = {name: {1: float(i), 2: float(i + 2)} for i, name in enumerate(names.BY_POSITION)}
    entry = entry_of(scored_run({20: 9.0}, **bins), "CPPO")
    logged = positions({"CPPO": [entry]}, MODEL, {})
    assert logged is not None and "the logged bins" in logged.caption
    assert logged.panels[0].lines[0].mean.to_list() == [float(i + 1) for i in range(8)]
    response = {"rollout_log_probs": [math.log(0.5)] * 8, "log_probs": [math.log(0.5 + i / 100) for i in range(8)]}
    masked = {**response, "response_mask": [1] * 8, "log_probs": [math.log(0.5)] * 8}
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts/1.jsonl").write_text(f"{json.dumps(response)}\n{json.dumps(masked)}\n")
    dump = read_dump(tmp_path)
    assert dump is not None and dump.responses == 2
    dumped = positions({"CPPO": [entry]}, MODEL, {"CPPO": dump})
    assert dumped is not None and "dumped rollouts (CPPO)" in dumped.caption
    np.testing.assert_allclose(dumped.panels[0].lines[0].mean, [i / 200 for i in range(8)], atol=1e-12)


def test_verls_dump_of_text_is_no_dump_of_log_probs(tmp_path):
    run = write_run(tmp_path, MODEL, "CPPO", {20: dict.fromkeys(paper.BENCHMARKS, 9.0)})
    (run / "rollouts").mkdir()
    (run / "rollouts/1.jsonl").write_text('{"input": "1+1", "output": "2", "score": 1.0, "step": 1}\n')
    study = read_study([run], {})
    assert study.dumps == {}
    assert "holds no log-probs" in study.notes[0]


def test_a_damaged_dump_names_file_and_line(tmp_path):
    (tmp_path / "rollouts").mkdir()
    good = json.dumps({"rollout_log_probs": [-1.0, -1.0], "log_probs": [-1.0, -2.0]})
    bad = json.dumps({"rollout_log_probs": [-1.0], "log_probs": [-1.0, -2.0]})
    (tmp_path / "rollouts/7.jsonl").write_text(f"{good}\n{bad}\n")
    with pytest.raises(LogError, match=r"7\.jsonl, line 2: .*shapes \(1,\) and \(2,\)"):
        read_dump(tmp_path)
    dump = read_dump(tmp_path, skip_bad_lines=True)
    assert dump is not None and dump.responses == 1


def test_pictures_of_the_paper_are_written_as_png_and_pdf(mixed):
    kinds = {"validation", "positions", "ablations", "warm-up", "training"}
    found = {path.name for path in (mixed / "figures").iterdir()}
    assert found == {f"qwen3_1p7b_base-{kind}.{end}" for kind in kinds for end in ("png", "pdf")}
    for path in (mixed / "figures").glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert picture.size[0] >= 1000 and len(picture.convert("L").getcolors()) > 50
    assert all(path.read_bytes().startswith(b"%PDF-") for path in (mixed / "figures").glob("*.pdf"))


def test_a_model_without_anything_to_draw_gets_no_pictures():
    run = scored_run({}, **{"perf/throughput": {1: 1.0}})
    assert pictures([entry_of(run, "CPPO")], MODEL, {}) == []


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_self_contained_and_accessible(mixed):
    page = self_contained(mixed / "report.html")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "plot"]
    assert len(drawings) > 15
    assert all(a["role"] == "img" and "Last values: " in str(a["aria-label"]) and "width" not in a for a in drawings)
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all("scope" in attributes for attributes in heads)
    assert sum(tag == "caption" for tag, _ in page.tags) == sum(tag == "table" for tag, _ in page.tags) == 6
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    text = (mixed / "report.html").read_text(encoding="utf-8")
    assert "@media print" in text and "prefers-color-scheme" not in text


def test_the_same_runs_give_the_same_bytes(mixed, tmp_path):
    again = study_report(str(mixed.parent / "runs"), "--out", str(tmp_path / "again"))
    written = [path.relative_to(mixed) for path in sorted(mixed.rglob("*")) if path.is_file()]
    assert len(written) == 9 + 10
    for path in written:
        assert (again / path).read_bytes() == (mixed / path).read_bytes(), path


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path) -> Path:
    """Two methods of one model, with few pictures to draw."""
    best = dict.fromkeys(paper.BENCHMARKS, 9.0)
    for method in ("CPPO", "DPPO"):
        write_run(tmp_path / "runs", MODEL, method, curve(best, 680, 660), every=100, logged=FEW)
    return tmp_path / "runs" / model_key(MODEL)


def test_one_damaged_file_stops_the_report_and_is_named(two, tmp_path, capsys):
    log = two / "dppo/logs/metrics-1.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:3], '{"step": 3, "da', *lines[3:]]) + "\n")
    arguments = (str(two / "cppo"), str(two / "dppo"), "--out", str(tmp_path / "out"))
    assert report.run(command(*arguments)) == 1
    assert f"{log}, line 4: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert report.run(command(*arguments, "--skip-bad-lines")) == 0
    rows = {row["method"]: row for row in read_csv(tmp_path / "out/runs.csv")}
    assert rows["DPPO"]["remarks"] == "metrics-1.jsonl: 1 damaged line was skipped."
    assert rows["DPPO"]["best"] == rows["CPPO"]["best"] == "9.00"


def test_steps_logged_again_after_a_restart_count_once(two, tmp_path):
    first = two / "cppo/logs/metrics-1.jsonl"
    lines = first.read_text().splitlines()
    first.write_text("\n".join(lines[:20]) + "\n")
    (two / "cppo/logs/metrics-2.jsonl").write_text("\n".join(lines[15:]) + "\n")
    study = read_study([two], {})
    cppo, dppo = (entry.score for entry in study.entries)
    assert cppo.curve.index.is_unique and cppo.curve.to_dict() == dppo.curve.to_dict()


def test_odd_logs_of_every_kind_are_reported_together(two, tmp_path):
    shutil.copytree(two / "cppo", two / "cppo_soft")
    log = two / "cppo_soft/logs/metrics-1.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    blind = [{"step": r["step"], "data": {k: v for k, v in r["data"].items() if "val-" not in k}} for r in rows]
    log.write_text("".join(json.dumps(row) + "\n" for row in blind[::3]))
    holes = two / "dppo/logs/metrics-1.jsonl"
    rows[4]["data"][names.GRAD_NORM] = None
    rows[5]["data"]["critic/rewards/mean"] = math.nan
    holes.write_text("".join(json.dumps(row) + "\n" for i, row in enumerate(rows) if i % 4 != 3))
    out = study_report(str(two), "--out", str(tmp_path / "out"))
    found = {row["path"].rpartition("/")[2]: row for row in read_csv(out / "runs.csv")}
    assert found["cppo_soft"]["remarks"].startswith("no validation accuracy was logged")
    assert "actor/grad_norm: 1 logged value is NaN" in found["dppo"]["remarks"]
    assert Page((out / "report.html").read_text(encoding="utf-8")).open == []


def test_the_same_run_twice_counts_once_and_two_unnamed_seeds_are_said(two, tmp_path, capsys):
    shutil.copytree(two / "cppo", two / "again")
    study = read_study([two / "cppo", two / "cppo", two / "again"], {})
    assert [entry.label for entry in study.entries] == [Label(MODEL, "CPPO")] * 2
    assert "given more than once" in study.notes[0]
    assert study.notes[1].startswith(f"2 runs are {MODEL} CPPO")


def test_markup_in_names_is_text(two, tmp_path):
    label = f"{two / 'cppo'}=<b>$x_1$ & co/<i>mine</i>".replace("</i>", "")
    out = study_report(str(two / "cppo"), "--label", label, "--out", str(tmp_path / "out"))
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.open == [] and "b" not in {tag for tag, _ in page.tags}
    assert "<b>$x_1$ & co" in page.text


# --- which report ---------------------------------------------------------------------------------------------------


def test_one_run_still_gets_the_report_of_a_run(two, capsys):
    assert report.run(command(str(two / "cppo"))) == 0
    assert sorted(path.name for path in (two / "cppo/report").iterdir()) == [
        "metrics.csv", "report.html", "report.md", "report.png",
    ]  # fmt: skip
    assert report.run(command(str(two / "cppo"), "--tables")) == 0
    assert (two / "cppo/report/table1.csv").exists()


def test_a_directory_of_runs_is_the_runs_in_it(two):
    assert expand(two) == [two / "cppo", two / "dppo"]
    assert expand(two.parent) == [two / "cppo", two / "dppo"]
    assert expand(two / "cppo") == [two / "cppo"]
    assert report.run(command(str(two))) == 0
    assert (two / "report/report.html").exists()
    assert expand(two) == [two / "cppo", two / "dppo"]  # and not the report


def test_verls_own_naming_is_a_run_a_file(tmp_path):
    for name in ("cppo-seed1", "cppo-seed2"):
        run = write_run(tmp_path / "runs", MODEL, "CPPO", {20: dict.fromkeys(paper.BENCHMARKS, 9.0)}, name)
        (tmp_path / "qwen3_8b_base").mkdir(exist_ok=True)
        shutil.copy(run / "logs/metrics-1.jsonl", tmp_path / "qwen3_8b_base" / f"{name}.jsonl")
    entries = read_study([tmp_path / "qwen3_8b_base"], {}).entries
    assert [entry.label for entry in entries] == [Label("Qwen3-8B-Base", "CPPO", str(i)) for i in (1, 2)]


def test_a_path_that_does_not_exist_is_an_error(two, capsys):
    assert report.run(command(str(two / "cppo"), str(two / "nowhere"))) == 1
    assert "nowhere does not exist" in capsys.readouterr().err


# --- long logs ------------------------------------------------------------------------------------------------------


def test_a_line_of_many_megabytes_is_damage_and_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("cppo_verl.reporting.logs.LONGEST_LINE", 1000)
    good = [json.dumps({"step": step, "data": {"a": float(step)}}) for step in (1, 2)]
    long = json.dumps({"step": 3, "data": {f"metric{i}": 1.0 for i in range(500)}})
    path = tmp_path / "metrics-1.jsonl"
    path.write_text(f"{good[0]}\n{long}\n{good[1]}\n")
    with pytest.raises(LogError, match=r"metrics-1\.jsonl, line 2: longer than"):
        read_run(path)
    run = read_run(path, skip_bad_lines=True)
    assert run.frame["a"].to_dict() == {1: 1.0, 2: 2.0} and run.files[0].skipped == 1


def test_reading_takes_a_few_bytes_a_number(tmp_path):
    steps, metrics = 1500, 200
    with (tmp_path / "metrics-1.jsonl").open("w") as stream:
        for step in range(steps):
            stream.write(json.dumps({"step": step, "data": {f"m/{i}": step + i / 7 for i in range(metrics)}}) + "\n")
    tracemalloc.start()
    try:
        run = read_run(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert run.frame.shape == (steps, metrics)
    assert run.frame.loc[700, "m/3"] == 700 + 3 / 7
    assert peak < 3 * 8 * steps * metrics


def test_not_logged_and_logged_as_nan_are_told_apart():
    columns = Columns()
    columns.update(3, {"a": 1.0})
    columns.update(1, {"a": math.nan, "b": 2.0})
    columns.update(2, {"b": math.inf})
    assert {name: steps.tolist() for name, steps in columns.nonfinite().items()} == {"a": [1], "b": [2]}
    assert [(step, sorted(row)) for step, row in columns.rows()] == [(3, ["a"]), (1, ["a", "b"]), (2, ["b"])]
    columns.replace(1, {"b": 5.0})
    assert list(columns.nonfinite()) == ["b"]
    frame = columns.take_frame()
    assert frame.index.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(frame["a"], [math.nan, math.nan, 1.0])
    np.testing.assert_array_equal(frame["b"], [5.0, math.inf, math.nan])


def test_a_study_keeps_of_a_log_what_it_draws(two):
    log = two / "cppo/logs/metrics-1.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({**r, "data": {**r["data"], "perf/mfu": 1.0}}) + "\n" for r in rows))
    (entry,) = read_study([two / "cppo"], {}).entries
    assert entry.run is not None
    assert names.GRAD_NORM in entry.run.frame and "perf/mfu" not in entry.run.frame
