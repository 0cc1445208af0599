"""The comparison of one's own runs: intervals by hand, pairs by seed, and a page without the paper's tables."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from cppo_verl import paper
from cppo_verl.cli import report
from cppo_verl.reporting import findings, many, names
from cppo_verl.reporting.curves import pictures
from cppo_verl.reporting.intervals import interval, t975
from cppo_verl.reporting.labels import Label, label_of
from cppo_verl.reporting.outcomes import Comparison, compare
from cppo_verl.reporting.study import read_study
from tests.reporting.own_runs import REWARD, write_own
from tests.reporting.paper_runs import write_run
from tests.reporting.test_paper_report import read_csv, study_report
from tests.reporting.test_report import Page, command

MODEL = "tiny-qwen3"


def compared(folder: Path, baseline: str | None = None) -> Comparison:
    return compare(read_study([folder], {}).entries, MODEL, baseline)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """GRPO and CPPO with seeds 0 to 2, CPPO two, three and four points better at the end; one seed of a third."""
    folder = tmp_path_factory.mktemp("own") / "runs"
    for seed in range(3):
        base = 0.80 + 0.05 * seed
        write_own(folder, "grpo", seed, {0: 0.4, 10: base + 0.01, 20: base})
        write_own(folder, "cppo", seed, {0: 0.4, 10: 0.6, 20: base + 0.02 + 0.01 * seed})
    write_own(folder, "mine", 1, {0: 0.4, 10: 0.7, 20: 0.75})
    return folder


@pytest.mark.parametrize("freedom", [1, 2, 5, 29, 30, 31, 60, 1000])
def test_the_t_quantile_holds_97_5_percent(freedom):
    # Student's density integrated from 0 with x = sqrt(freedom) tan(u): cos(u) to the power of freedom - 1
    u = np.linspace(0, math.atan(t975(freedom) / math.sqrt(freedom)), 200_001)
    whole = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    assert 0.5 + whole * np.trapezoid(np.cos(u) ** (freedom - 1), u) == pytest.approx(0.975, abs=3e-5)


def test_interval_of_none_one_and_three():
    assert math.isnan(interval([])[0])
    assert interval([2.0]) == (2.0, -math.inf, math.inf)
    half = 4.303 / math.sqrt(3)  # standard deviation 1
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half))


def test_best_and_final_count_steps_after_0_alone(tmp_path):
    write_own(tmp_path, "cppo", 0, {0: 0.99, 10: 0.7, 20: 0.9, 30: 0.8})
    (outcome,) = compared(tmp_path).methods["CPPO"]
    assert (outcome.best, outcome.final, outcome.steps) == (pytest.approx(90.0), pytest.approx(80.0), (20, 30))
    assert (outcome.seconds, outcome.hours) == (2.0, pytest.approx(60 / 3600))


def test_pairs_are_of_one_seed_and_seeds_drop_out(own):
    comparison = compared(own)
    assert list(comparison.methods) == ["GRPO", "CPPO", "mine"]
    assert (comparison.baseline, comparison.seeds) == ("GRPO", ["0", "1", "2"])
    final = comparison.difference("CPPO", "final")
    assert final is not None and final.by_seed == pytest.approx({"0": 2.0, "1": 3.0, "2": 4.0})
    assert findings.verdict(final) == "higher"  # 3 +- 2.48, though the methods' own intervals are 5 to 12 points wide
    best = comparison.difference("CPPO", "best")
    assert best is not None and best.by_seed == pytest.approx({"0": 1.0, "1": 2.0, "2": 3.0})
    assert findings.verdict(best) == "undecided"  # 2 +- 2.48
    mine = comparison.difference("mine", "final")
    assert mine is not None and list(mine.by_seed) == ["1"]
    assert findings.verdict(mine) == "one pair: no interval"


def test_a_pair_is_compared_up_to_the_last_step_of_both(tmp_path):
    write_own(tmp_path, "grpo", 0, {10: 0.5, 20: 0.6, 30: 0.9})
    write_own(tmp_path, "cppo", 0, {10: 0.5, 20: 0.7})
    comparison = compared(tmp_path)
    values = {d.measure: d.by_seed["0"] for d in comparison.differences}
    assert values == pytest.approx({"best": 10.0, "final": 10.0})


def test_other_seeds_are_no_pairs(tmp_path):
    write_own(tmp_path, "grpo", 0, {10: 0.5})
    write_own(tmp_path, "cppo", 1, {10: 0.7})
    final = compared(tmp_path).difference("CPPO", "final")
    assert final is not None and findings.verdict(final) == findings.NO_PAIR


def test_a_collapsed_seed_counts(tmp_path):
    for seed, end in ((0, 0.9), (1, 0.1)):
        write_own(tmp_path, "cppo", seed, {10: 0.8, 20: end, 30: end})
    comparison = compared(tmp_path)
    assert [outcome.collapsed for outcome in comparison.methods["CPPO"]] == [False, True]
    assert "50.0 [" in findings.sentence(comparison)
    (line,) = pictures(read_study([tmp_path], {}).entries, MODEL, {})[0].panels[0].lines
    assert line.mean.loc[30] == pytest.approx(50.0)
    assert line.error.loc[30] == pytest.approx(t975(1) * 40.0)  # standard error of 90 and 10
    assert line.collapsed == ((20, pytest.approx(10.0)),)


def test_runs_of_one_seed_count_as_one(tmp_path):
    write_own(tmp_path / "a", "cppo", 0, {10: 0.5, 20: 0.6})
    write_own(tmp_path / "b", "cppo", 0, {10: 0.7, 20: 0.8})
    study = read_study([tmp_path], {})
    assert study.notes[0].startswith(f"2 runs are {MODEL} CPPO seed 0, and count as one seed, with their mean")
    comparison = compare(study.entries, MODEL)
    assert "CPPO 70.0 (one seed: no interval)" in findings.sentence(comparison)
    (line,) = pictures(study.entries, MODEL, {})[0].panels[0].lines
    assert line.mean.to_dict() == pytest.approx({10: 60.0, 20: 70.0}) and line.error.empty and len(line.seeds) == 2


def test_runs_of_one_name_with_other_settings_are_told_apart(tmp_path):
    for i, delta in enumerate((0.1, 0.2)):
        write_own(tmp_path / str(i), "cppo", 0, {10: 0.5}, delta=delta, delta_b=0.02, w_min=0.8)
    assert list(compared(tmp_path).methods) == ["CPPO, delta 0.1", "CPPO, delta 0.2"]
    label = Label(MODEL, "CPPO", "0")
    entries = read_study([tmp_path], {str(tmp_path / f"{i}/cppo-seed0"): label for i in range(2)}).entries
    assert len(compare(entries, MODEL).methods["CPPO"]) == 2  # what the user calls one is one


def test_runs_that_differ_in_a_knob_of_a_rule_from_outside_are_told_apart(tmp_path):
    for folder, grace in (("a", 2), ("b", 4)):
        write_own(tmp_path / folder, "mine", 1, {0: 0.1, 10: 0.5}, loss_mode="mine", grace=grace)
    assert list(compared(tmp_path).methods) == ["mine, grace 2", "mine, grace 4"]


def test_seeds_and_models_of_a_quickstart():
    settings = {"project": "quickstart", "experiment": "cppo", "model": "runs/tiny-qwen3-seed2", "data_seed": 2}
    assert label_of(settings, Path("runs/quickstart-cppo-seed2-ranks1")) == Label(MODEL, "CPPO", "2")
    assert label_of({**settings, "data_seed": 7}, Path("runs/x")).seed == "7"
    assert label_of({"experiment": "cppo"}, Path("runs/x")).seed == ""


def test_without_accuracy_rewards_are_compared(tmp_path):
    write_own(tmp_path, "cppo", 0, {10: -1.5, 20: 0.25}, metric=REWARD)
    write_own(tmp_path, "grpo", 0, {}, end=40, metric=None)
    comparison = compared(tmp_path)
    assert comparison.kind == "validation reward"
    assert comparison.methods["CPPO"][0].final == 0.25
    assert comparison.methods["GRPO"][0].final is None
    shutil.rmtree(tmp_path / "cppo-seed0")
    comparison = compared(tmp_path)
    (outcome,) = comparison.methods["GRPO"]
    assert comparison.kind == "training reward" and outcome.steps is not None
    run = read_study([tmp_path], {}).entries[0].run
    assert run is not None and len(outcome.curve) == 20
    assert outcome.final == pytest.approx(run.frame["critic/rewards/mean"].iloc[-2:].mean())


def test_the_baseline_can_be_named(own, tmp_path, capsys):
    assert compared(own, "CPPO").baseline == "CPPO"
    out = study_report(str(own), "--baseline", "CPPO", "--out", str(tmp_path / "out"))
    assert {row["baseline"] for row in read_csv(out / "differences.csv")} == {"CPPO"}
    assert report.run(command(str(own), "--baseline", "nobody", "--out", str(tmp_path / "no"))) == 1
    assert "--baseline nobody: no run is of that method. There are: CPPO, GRPO, mine." in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_page_leads_with_the_comparison_and_has_none_of_the_papers_tables(own, tmp_path):
    out = study_report(str(own), "--out", str(tmp_path / "out"))
    written = {path.name for path in out.iterdir()}
    assert written == {"comparison.csv", "comparison.md", "differences.csv", "figures", "report.html", "runs.csv"}
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert "Table 1" not in text and "paper" not in text
    assert "CPPO less GRPO: +3.0 [+0.5, +5.5], higher" in text
    assert text.index("CPPO less GRPO") < text.index("Seed by seed") < text.index("Validation score")
    assert text.count("one seed: no interval") == 3  # in the lead, best and final
    rows = {row["method"]: row for row in read_csv(out / "comparison.csv")}
    assert (rows["mine"]["final_mean"], rows["mine"]["final_low"], rows["mine"]["final_n"]) == ("75", "", "1")
    assert float(rows["CPPO"]["masked_percent"]) > 0 and rows["CPPO"]["seconds_a_step"] == "2"
    (d,) = [row for row in read_csv(out / "differences.csv") if (row["method"], row["measure"]) == ("CPPO", "final")]
    assert d["by_seed"] == "0:+2 1:+3 2:+4"
    assert (out / "comparison.md").read_text().count("\n|") == 2 * 2 + 3 + 2
    assert {path.name for path in (out / "figures").glob("*.png")} == {
        f"tiny_qwen3-{name}.png" for name in ("validation", "training", "positions")
    }


def test_with_a_model_of_the_paper_its_tables_are_there_too(own, tmp_path):
    best = dict.fromkeys(paper.BENCHMARKS, 9.0)
    run = write_run(tmp_path, "Qwen3-1.7B-Base", "CPPO", {20: best, 40: best})
    study = read_study([own, run], {})
    compared_models = many.comparisons(study)
    assert list(compared_models) == [MODEL]
    results = many.paper_results(study)
    assert results is not None and many.paper_results(read_study([own], {})) is None
    drawn = {model: [] for model in study.models()}
    text = Page(many.html_page(study, results, compared_models, drawn, None)).text
    assert text.index("Table 4: by benchmark") < text.index("Paired differences")


def test_the_masked_share_of_verls_own_losses_is_their_clipped_one(own):
    (outcome, *_) = compared(own).methods["GRPO"]
    run = next(entry.run for entry in read_study([own / "grpo-seed0"], {}).entries)
    assert run is not None and names.MASKED not in run.frame
    assert outcome.masked == pytest.approx(100 * run.frame[names.MASKED_OR_CLIPPED[1]].mean())
