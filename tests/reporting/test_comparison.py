"""The comparison of one's own runs: pairs by seed, what counts, and a page without the paper's tables."""

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cppo_verl.estimates import t975
from cppo_verl.reporting import many
from cppo_verl.reporting import pictures as files
from cppo_verl.reporting.comparison import NO_PAIR, Comparison, compare
from cppo_verl.reporting.curves import pictures
from cppo_verl.reporting.labels import Label
from cppo_verl.reporting.plots import Line, Panel, Plot
from cppo_verl.reporting.study import read_study
from tests.reporting.pages import Page, read_csv, reported, status
from tests.reporting.runs import REWARD, write_log, write_own

MODEL = "tiny-qwen3"


def compared(folder: Path, baseline: str | None = None) -> Comparison:
    return compare(read_study([folder], {}).entries, MODEL, baseline)


def validation_line(folder: Path):
    (line,) = pictures(read_study([folder], {}).entries, MODEL)[0].lines
    return line


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """GRPO and CPPO with seeds 0 to 2, CPPO two, three and four points better at the end; one seed of a third."""
    folder = tmp_path_factory.mktemp("own") / "runs"
    for seed in range(3):
        base = 0.80 + 0.05 * seed
        write_own(folder, "grpo", seed, {0: 0.4, 10: base + 0.01, 20: base})
        write_own(folder, "cppo", seed, {0: 0.99, 10: 0.6, 20: base + 0.02 + 0.01 * seed})
    write_own(folder, "mine", 1, {0: 0.4, 10: 0.8, 20: 0.75})
    return folder


def test_pairs_are_of_one_seed_and_seeds_drop_out(own):
    found = compared(own)
    assert (list(found.by_method), found.baseline, found.seeds) == (["GRPO", "CPPO", "mine"], "GRPO", ["0", "1", "2"])
    assert found.differences("CPPO", "final") == pytest.approx({"0": 2.0, "1": 3.0, "2": 4.0})
    assert found.differences("CPPO", "best") == pytest.approx({"0": 1.0, "1": 2.0, "2": 3.0})  # after step 0
    # 3 +- 2.48, though the methods' own intervals are 5 to 12 points wide; 2 +- 2.48
    assert [found.difference("CPPO", measure).verdict for measure in ("final", "best")] == ["higher", "undecided"]
    assert str(found.difference("mine", "final")) == "−10.0, one pair: no interval"
    (run,) = found.by_method["mine"].to_dict("records")
    numbers = [run[x] for x in ("best", "best_step", "final", "final_step", "seconds", "hours")]
    assert numbers == pytest.approx([80.0, 10, 75.0, 20, 2.0, 40 / 3600])
    # verl's own losses log what they clip
    assert found.by_method["GRPO"]["masked"].iloc[0] == pytest.approx(100 * (0.002 + 1e-5 * 10.5))
    assert compared(own, "CPPO").baseline == "CPPO"


@pytest.mark.parametrize(("seed", "said"), [(0, {"0": 10.0}), (1, {})])
def test_a_pair_is_of_one_seed_and_up_to_the_last_step_of_both(tmp_path, seed, said):
    write_own(tmp_path, "grpo", 0, {10: 0.5, 20: 0.6, 30: 0.9})
    write_own(tmp_path, "cppo", seed, {10: 0.5, 20: 0.7})
    found = compared(tmp_path)
    assert all(found.differences("CPPO", measure) == pytest.approx(said) for measure in ("best", "final"))
    assert (found.difference("CPPO", "final").verdict == NO_PAIR) == (seed == 1)


def test_a_collapsed_seed_counts(tmp_path):
    for seed, end in ((0, 0.9), (1, 0.1)):
        write_own(tmp_path, "cppo", seed, {10: 0.8, 20: end, 30: end})
    found, line = compared(tmp_path), validation_line(tmp_path)
    assert found.runs["collapsed"].tolist() == [False, True] and "50.0 [" in found.sentence()
    assert line.values.loc[30] == pytest.approx(50.0)
    assert line.error is not None and line.error.loc[30] == pytest.approx(t975(1) * 40.0)  # of 90 and 10


def test_runs_of_one_seed_count_as_one(tmp_path):
    write_own(tmp_path / "a", "cppo", 0, {10: 0.5, 20: 0.6})
    write_own(tmp_path / "b", "cppo", 0, {10: 0.7, 20: 0.8})
    (note,) = read_study([tmp_path], {}).notes
    assert note.startswith(f"2 runs are {MODEL} CPPO seed 0, and count as one seed, with their mean")
    assert "CPPO 70.0 (one seed: no interval)" in compared(tmp_path).sentence()
    line = validation_line(tmp_path)
    assert line.values.to_dict() == pytest.approx({10: 60.0, 20: 70.0}) and line.error is None and len(line.seeds) == 2


def test_runs_of_one_name_with_other_settings_are_told_apart(tmp_path):
    for folder, delta, grace in (("a", 0.1, 2), ("b", 0.2, 4)):
        write_own(tmp_path / folder, "cppo", 0, {10: 0.5}, delta=delta, delta_b=0.02, w_min=0.8, clip=delta)
        write_own(tmp_path / folder, "grpo", 0, {10: 0.5}, clip=delta)
        write_own(tmp_path / folder, "dppo", 0, {10: 0.5}, trace=grace, budget_cap=grace)  # of which it has no budget
        write_own(tmp_path / folder, "tv", 0, {10: 0.5}, loss_mode="dppo", gate="hard", restore_strength=grace)
        write_own(tmp_path / folder, "mine", 1, {10: 0.5}, loss_mode="mine", grace=grace)
    expected = ["DPPO, trace 2", "DPPO, trace 4", "CPPO, delta 0.1", "CPPO, delta 0.2"]
    expected = ["GRPO, clip_high 0.1", "GRPO, clip_high 0.2", *expected, "mine, grace 2", "mine, grace 4", "tv"]
    assert list(compared(tmp_path).by_method) == expected
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
    assert found.kind == "training reward"
    assert found.values("GRPO", "final") == [pytest.approx(0.2 + 0.01 * 39.5)]  # of the last two steps


def test_the_page_leads_with_the_comparison_and_has_none_of_the_papers_tables(own, tmp_path, capsys):
    assert status(own, "--baseline", "nobody", "--out", tmp_path / "no") == 1
    assert "--baseline nobody: no run is of that method. There are: CPPO, GRPO, mine." in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    label = f"{own / 'mine-seed1'}={MODEL}/<b>$x_1$ & [x](y)|\U00013000/1"  # no font has hieroglyphs
    out = reported(own, "--out", tmp_path / "out", "--label", label)
    written = {path.name for path in out.iterdir()}
    assert written == {"comparison.csv", "comparison.md", "differences.csv", "figures", "report.html", "runs.csv"}
    page = Page(out / "report.html")
    page.check_self_contained()
    assert "b" not in {tag for tag, _ in page.tags} and "<b>$x_1$ & [x](y)|\U00013000" in page.text
    assert "Table 1" not in page.text and "paper" not in page.text
    assert "CPPO less GRPO: +3.0 [+0.5, +5.5], higher" in page.text
    order = [page.text.index(x) for x in ("CPPO less GRPO", "Seed by seed", "Validation score")]
    assert order == sorted(order) and page.text.count("one seed: no interval") == 3  # in the lead, best and final
    rows = {row["method"][:4]: row for row in read_csv(out / "comparison.csv")}
    assert (rows["<b>$"]["final_mean"], rows["<b>$"]["final_low"], rows["<b>$"]["final_n"]) == ("75", "", "1")
    assert float(rows["CPPO"]["masked_percent"]) > 0 and rows["CPPO"]["seconds_a_step"] == "2"
    (d,) = [row for row in read_csv(out / "differences.csv") if (row["method"], row["measure"]) == ("CPPO", "final")]
    assert d["by_seed"] == "0:+2 1:+3 2:+4"
    text = (out / "comparison.md").read_text()
    assert text.count("\n|") == 2 * 2 + 3 + 2 and r"\<b\>$x\_1$ & \[x\](y)\|" in text
    assert {path.name for path in (out / "figures").glob("*.png")} == {
        f"tiny_qwen3-{name}.png" for name in ("validation", "training", "positions")
    }


def test_500_random_names_of_folders_are_runs_of_one_report(tmp_path):
    draw = random.Random(0)
    letters = [chr(c) for c in (*range(1, 0xD800), *range(0xE000, 0x2FA20), *range(0xE0000, 0xE01F0)) if c != ord("/")]
    names = {"".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(493)}
    names |= {"\udc80\udcff", "a,b=[1] #2 ~x", "\x01\x1f\x7f", "\u202e\u2028", "-x", "$\\frac$", "%s{}"}
    for name in names:
        write_log(tmp_path / "runs" / name / "logs/metrics-1.jsonl", [(1, {"val-core/x/acc/mean@1": 0.5})])
    study = read_study([tmp_path / "runs"], {})
    assert len(study.entries) == len(names)
    text = many.html_page(study, None, many.comparisons(study), {x: [] for x in study.models()}, None)
    (tmp_path / "page.html").write_text(text, "utf-8")
    assert Page(tmp_path / "page.html").text.count("unknown") >= len(names)  # their seeds


def test_a_name_that_no_font_draws_is_a_number_in_files(monkeypatch):
    method = "\U0001f9ea-\U00013000"  # no font that matplotlib falls back on has hieroglyphs
    drawn: list[str] = []
    monkeypatch.setattr(files, "draw", lambda _, panel, **__: drawn.extend(line.name for line in panel.lines))
    files.compose([Panel("key", "title", "", (Plot((Line(method, pd.Series([1.0]), "red"),)),))], "title")
    assert drawn == ["[1] -"]
    assert files.stand_ins(["CPPO", method, "\udc80"]) == {"CPPO": "CPPO", method: "[1] -", "\udc80": "[2]"}
