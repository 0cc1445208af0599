"""The comparison of one's own runs: intervals by hand, pairs by seed, and a page without the paper's tables."""

import math
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from cppo_verl import paper
from cppo_verl.reporting import comparison, many, metrics, tables
from cppo_verl.reporting.curves import pictures
from cppo_verl.reporting.intervals import interval, t975
from cppo_verl.reporting.labels import Label
from cppo_verl.reporting.outcomes import Comparison, compare
from cppo_verl.reporting.pictures import stand_ins
from cppo_verl.reporting.study import read_study
from tests.reporting.own_runs import REWARD, write_own
from tests.reporting.pages import Page, read_csv, reported, status, write_log
from tests.reporting.paper_runs import write_run

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
    assert math.isnan(interval([])[0]) and interval([2.0]) == (2.0, -math.inf, math.inf)
    half = 4.303 / math.sqrt(3)  # standard deviation 1
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half))


def test_best_and_final_count_steps_after_0_alone(tmp_path):
    write_own(tmp_path, "cppo", 0, {0: 0.99, 10: 0.7, 20: 0.9, 30: 0.8})
    (run,) = compared(tmp_path).runs.to_dict("records")
    numbers = [run[x] for x in ("best", "best_step", "final", "final_step", "seconds", "hours")]
    assert numbers == pytest.approx([90.0, 20, 80.0, 30, 2.0, 60 / 3600])


def test_pairs_are_of_one_seed_and_seeds_drop_out(own):
    found = compared(own)
    assert found.methods == ["GRPO", "CPPO", "mine"]
    assert (found.baseline, found.seeds) == ("GRPO", ["0", "1", "2"])
    assert found.differences["CPPO", "final"] == pytest.approx({"0": 2.0, "1": 3.0, "2": 4.0})
    assert found.differences["CPPO", "best"] == pytest.approx({"0": 1.0, "1": 2.0, "2": 3.0})
    # 3 +- 2.48, though the methods' own intervals are 5 to 12 points wide; 2 +- 2.48
    assert [comparison.difference(found, "CPPO", m).verdict for m in ("final", "best")] == ["higher", "undecided"]
    assert str(comparison.difference(found, "mine", "final")) == "−10.0, one pair: no interval"
    masked = found.by_method["GRPO"]["masked"].iloc[0]
    run = read_study([own / "grpo-seed0"], {}).entries[0].run
    assert run is not None and metrics.MASKED not in run.frame  # verl's own losses log what they clip
    assert masked == pytest.approx(100 * run.frame["actor/pg_clipfrac"].mean())


@pytest.mark.parametrize(
    ("seed", "said"), [(0, {"best": {"0": 10.0}, "final": {"0": 10.0}}), (1, {"best": {}, "final": {}})]
)
def test_a_pair_is_of_one_seed_and_up_to_the_last_step_of_both(tmp_path, seed, said):
    write_own(tmp_path, "grpo", 0, {10: 0.5, 20: 0.6, 30: 0.9})
    write_own(tmp_path, "cppo", seed, {10: 0.5, 20: 0.7})
    found = compared(tmp_path)
    assert {m: pairs for (_, m), pairs in found.differences.items()} == {m: pytest.approx(x) for m, x in said.items()}
    assert (comparison.difference(found, "CPPO", "final").verdict == comparison.NO_PAIR) == (seed == 1)


def test_a_collapsed_seed_counts(tmp_path):
    for seed, end in ((0, 0.9), (1, 0.1)):
        write_own(tmp_path, "cppo", seed, {10: 0.8, 20: end, 30: end})
    found = compared(tmp_path)
    assert found.runs["collapsed"].tolist() == [False, True] and "50.0 [" in comparison.sentence(found)
    (line,) = pictures(read_study([tmp_path], {}).entries, MODEL)[0].panels[0].lines
    assert line.values.loc[30] == pytest.approx(50.0)
    assert line.error is not None and line.error.loc[30] == pytest.approx(t975(1) * 40.0)  # of 90 and 10
    assert line.collapsed == ((20, pytest.approx(10.0)),)


def test_runs_of_one_seed_count_as_one(tmp_path):
    write_own(tmp_path / "a", "cppo", 0, {10: 0.5, 20: 0.6})
    write_own(tmp_path / "b", "cppo", 0, {10: 0.7, 20: 0.8})
    study = read_study([tmp_path], {})
    assert study.notes[0].startswith(f"2 runs are {MODEL} CPPO seed 0, and count as one seed, with their mean")
    assert "CPPO 70.0 (one seed: no interval)" in comparison.sentence(compare(study.entries, MODEL))
    (line,) = pictures(study.entries, MODEL)[0].panels[0].lines
    assert line.values.to_dict() == pytest.approx({10: 60.0, 20: 70.0}) and line.error is None and len(line.seeds) == 2


def test_runs_of_one_name_with_other_settings_are_told_apart(tmp_path):
    for folder, delta, grace in (("a", 0.1, 2), ("b", 0.2, 4)):
        write_own(tmp_path / folder, "cppo", 0, {10: 0.5}, delta=delta, delta_b=0.02, w_min=0.8)
        write_own(tmp_path / folder, "mine", 1, {10: 0.5}, loss_mode="mine", grace=grace)
    assert compared(tmp_path).methods == ["CPPO, delta 0.1", "CPPO, delta 0.2", "mine, grace 2", "mine, grace 4"]
    label = Label(MODEL, "CPPO", "0")
    entries = read_study([tmp_path], {str(tmp_path / f"{x}/cppo-seed0"): label for x in "ab"}).entries
    assert len(compare(entries, MODEL).by_method["CPPO"]) == 2  # what the user calls one is one


def test_without_accuracy_rewards_are_compared(tmp_path):
    write_own(tmp_path, "cppo", 0, {10: -1.5, 20: 0.25}, metric=REWARD)
    write_own(tmp_path, "grpo", 0, {}, end=40, metric=None)
    found = compared(tmp_path)
    assert found.kind == "validation reward"
    assert found.values("CPPO", "final") == [0.25] and found.values("GRPO", "final") == []
    shutil.rmtree(tmp_path / "cppo-seed0")
    found = compared(tmp_path)
    run = read_study([tmp_path], {}).entries[0].run
    assert found.kind == "training reward" and run is not None
    assert found.values("GRPO", "final") == [pytest.approx(run.frame["critic/rewards/mean"].iloc[-2:].mean())]


def test_the_baseline_can_be_named(own, tmp_path, capsys):
    assert compared(own, "CPPO").baseline == "CPPO"
    assert status(own, "--baseline", "nobody", "--out", tmp_path / "no") == 1
    assert "--baseline nobody: no run is of that method. There are: CPPO, GRPO, mine." in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_page_leads_with_the_comparison_and_has_none_of_the_papers_tables(own, tmp_path):
    out = reported(own, "--out", tmp_path / "out")
    written = {path.name for path in out.iterdir()}
    assert written == {"comparison.csv", "comparison.md", "differences.csv", "figures", "report.html", "runs.csv"}
    page = Page(out / "report.html")
    assert "Table 1" not in page.text and "paper" not in page.text
    assert "CPPO less GRPO: +3.0 [+0.5, +5.5], higher" in page.text
    order = [page.text.index(x) for x in ("CPPO less GRPO", "Seed by seed", "Validation score")]
    assert order == sorted(order) and page.text.count("one seed: no interval") == 3  # in the lead, best and final
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
    found = many.comparisons(study)
    assert list(found) == [MODEL] and tables.results_of(read_study([own], {}).entries) is None
    page = tmp_path / "page.html"
    drawn = {model: [] for model in study.models()}
    page.write_text(many.html_page(study, tables.results_of(study.entries), found, drawn, None))
    text = Page(page).text
    assert text.index("Table 4: by benchmark") < text.index("Paired differences")


def test_markup_in_names_is_text(own, tmp_path):
    label = f"{own / 'cppo-seed0'}=<b>$x_1$ & co/<i>mine | [x](y)"
    out = reported(own / "cppo-seed0", "--label", label, "--out", tmp_path / "out")
    page = Page(out / "report.html")
    assert not {"b", "i"} & {tag for tag, _ in page.tags}
    assert "<b>$x_1$ & co" in page.text and "<i>mine | [x](y)" in page.text
    assert r"\<i\>mine \| \[x\](y)" in (out / "comparison.md").read_text()


def test_names_that_no_font_draws_are_numbers_in_pictures_and_text_on_the_page(own, tmp_path):
    method = "\U0001f9ea-\U00013000"  # no font that matplotlib falls back on has hieroglyphs
    label = f"{own / 'mine-seed1'}={MODEL}/{method}/1"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")
        out = reported(own, "--label", label, "--out", tmp_path / "out")
    text = Page(out / "report.html").text
    assert method in text and f"In PNG and PDF, [1] - is {method}." in text
    assert stand_ins(["CPPO", method, "\U00013001"]) == {"CPPO": "CPPO", method: "[1] -", "\U00013001": "[2]"}


def test_500_random_names_of_folders_are_runs_of_one_report(tmp_path):
    draw = random.Random(0)
    letters = [chr(c) for c in (*range(1, 0xD800), *range(0xE000, 0x2FA20), *range(0xE0000, 0xE01F0)) if c != ord("/")]
    names = {"".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(498)}
    names |= {"\udc80\udcff", "a,b=[1] #2 ~x"}
    for name in names:
        write_log(tmp_path / "runs" / name / "logs/metrics-1.jsonl", [(1, {"val-core/x/acc/mean@1": 0.5})])
    study = read_study([tmp_path / "runs"], {})
    assert len(study.entries) == len(names)
    text = many.html_page(study, None, many.comparisons(study), {x: [] for x in study.models()}, None)
    (tmp_path / "page.html").write_text(text, "utf-8")
    assert Page(tmp_path / "page.html").text.count("unknown") >= len(names)  # their seeds
    assert len(set(stand_ins([entry.label.method for entry in study.entries]).values())) > len(names) - 5
