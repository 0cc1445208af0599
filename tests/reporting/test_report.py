"""The report of one run: its numbers, its panels, and files that show them as text and nothing else."""

import json
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from cppo_verl import presets
from cppo_verl.reporting import metrics
from cppo_verl.reporting.logs import read_run
from cppo_verl.reporting.panels import other_time, panels_of, thirds
from cppo_verl.reporting.pictures import compose, svg
from cppo_verl.reporting.plots import blocks, with_gaps
from cppo_verl.reporting.settings import headline_name, read_settings, settings_table
from cppo_verl.reporting.summary import headline, number_rows, validation
from cppo_verl.reporting.template import data
from cppo_verl.reporting.text import percent, plain
from tests.reporting.pages import Page, reported, status
from tests.reporting.runs import CONFIG, LOSS, P, realistic_run, realistic_steps, run_of, save, write_log

ACC, REWARD = "val-core/toy/acc/mean@{}", "val-core/toy/reward/mean@1"
AIME24, AIME25 = "val-core/aime24/acc/mean@16", "val-core/aime25/acc/mean@16"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of the realistic run, through the command line's own parser."""
    return reported(realistic_run(tmp_path_factory.mktemp("runs") / "arithmetic-cppo"))


@pytest.mark.parametrize(
    ("rows", "sentence", "detail"),
    [
        ({step: {ACC.format(4): x} for step, x in ((0, 0.25), (5, 0.75), (10, 0.5))},
         "validation accuracy 25.0% → 50.0% after 10 steps",
         "Validated on toy (4 answers a prompt). Best 75.0% at step 5."),
        ({0: {AIME24: 0.1, AIME25: 0.3}, 10: {AIME24: 0.9}, 20: {AIME24: 0.5, AIME25: 0.4}, 25: {"loss": 0.0}},
         "validation accuracy 20.0% → 45.0% after 20 steps",
         "Unweighted mean of aime24, aime25 (16 answers a prompt each). Best 45.0% at step 20. "
         "The log goes on to step 25."),
        ({3: {REWARD: -0.5}, 7: {REWARD: 0.25}}, "validation reward -0.500 → 0.250 from step 3 to step 7", None),
        ({1: {"critic/score/mean": 0.1}, 2: {"critic/score/mean": 0.2}},
         "training reward 0.100 → 0.200 from step 1 to step 2", None),
        ({1: {"actor/grad_norm": 1.0}}, "no validation was logged, nor a training reward", None),
        ({0: {"val-core/a/acc/mean@1": 1.0}, 1: {"val-core/b/acc/mean@1": 1.0}},
         "no step validated all of a, b, nor a training reward", None),
    ],
)  # fmt: skip
def test_headline_says_before_and_after_of_what_there_is(rows, sentence, detail):
    head = headline(run_of(rows, loss_mode="cppo", divergence="tv", gate="hard"))
    assert head.sentence() == f"CPPO: {sentence}"
    assert detail in (None, head.detail)


def test_numbers_are_first_last_lowest_highest_and_never_invented():
    rows = {step: {ACC.format(4): 0.9, ACC.format(16): 0.2 * (step + 1), REWARD: -0.6} for step in (0, 1)}
    found = validation(run_of(rows).frame)  # of the most samples, accuracy before reward
    assert found is not None
    assert (found.kind, found.samples, found.mean.tolist()) == ("accuracy", {"toy": 16}, [0.2, 0.4])
    values = (0.02, math.nan, 0.5, math.inf, 0.004)
    run = run_of({step: {metrics.MASKED: x} for step, x in enumerate(values)})
    cells = {row.metric: row.cells for row in number_rows(run)}
    assert cells[metrics.MASKED] == ("2.0%", "0.40%", "0.40%", "50.0%")
    assert cells[metrics.DIVERGENCE_MEAN] == () and metrics.SCALE not in cells


@pytest.mark.parametrize(
    ("shown", "value", "text"),
    [(plain, 0.0, "0"), (plain, -0.0505, "-0.0505"), (plain, 735.2, "735"), (plain, 2e-9, "2.00e-9"),
     (plain, 12345.6, "12346"), (percent, 0.4825, "48.2%"), (percent, 0.0, "0.0%"), (percent, 0.00034, "0.034%")],
)  # fmt: skip
def test_three_digits_and_small_shares_that_do_not_read_as_none(shown, value, text):
    assert shown(value) == text


def test_metric_names_are_those_the_package_logs():
    from cppo_verl.trust_region import metrics as logged

    assert (logged.PREFIX, logged.DIVERGENCE_BINS) == (metrics.TRUST_REGION, metrics.POSITION_BINS)
    assert metrics.FIRST_UPDATE.removeprefix(metrics.TRUST_REGION + "first_update/") in logged.FIRST_UPDATE


def test_settings_are_those_that_the_config_sets_and_the_rule_uses(tmp_path):
    def settings_of(config: object) -> dict[str, object]:
        (tmp_path / "config.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        return read_settings(tmp_path / "config.yaml")

    settings = settings_of(CONFIG)
    shown = {"Model": "tiny-qwen3", "Prompts × responses": "16 × 4", "Learning rate": "0.0002",
             "Token threshold delta": "0.15", "Seeds": "rollout 7, mini-batches 42"}  # fmt: skip
    assert shown.items() <= dict(settings_table(settings)).items()  # data.seed is null
    assert headline_name(settings) == "CPPO"
    odd = "actor_rollout_ref: {actor: {optim: {lr: 1e-6}, ppo_mini_batch_size: '${data.train_batch_size}'}}\n"
    assert settings_of(f"{odd}data: {{train_batch_size: 32}}\n") == {
        "learning_rate": 1e-6, "mini_batch": 32, "prompts": 32
    }  # fmt: skip
    knobs = {"delta": 0.15, "delta_b": 0.02, "w_min": 0.8, "budget": "none", "weights": "linear", "gate": "soft"}
    cppo = dict(settings_table({"loss_mode": "cppo", **knobs}))
    assert "Prefix budget delta_b" not in cppo and cppo["Last weight w_min"] == "0.8"
    assert settings_table({"loss_mode": "trm_max", **knobs}) == [("Rule", "trm_max"), ("Token threshold delta", "0.15")]
    assert ("Gate", "soft") in settings_table({"loss_mode": "dppo", **knobs})
    assert ("Prefix budget delta_b", "0.02") in settings_table({"loss_mode": "trm_max_avg", **knobs})
    assert headline_name({"loss_mode": "cppo", **knobs}) == "CPPO (soft, no budget)"
    for preset, name in (("cppo", "CPPO"), ("nfpo", "DPPO (trace 4)"), ("dppo_restore", "DPPO (restore)")):
        actor = presets.section(preset, (), "actor_rollout_ref.actor")
        assert headline_name(settings_of({"actor_rollout_ref": {"actor": actor}})) == name
    loss = {"loss_mode": "cutoff", "rule_module": "/a/cutoff.py", "grace": 2, "delta": 0.1, "w_min": 0.8, "dro_beta": 1}
    own = dict(settings_table(settings_of({"actor_rollout_ref": {"actor": {"policy_loss": loss}}})))
    assert (own["Rule"], own["grace"], own["Last weight w_min"]) == ("cutoff", "2", "0.8") and "dro_beta" not in own


def test_lines_and_bars_leave_a_hole_where_steps_are_missing():
    holed = pd.Series([1.0, 2.0, 3.0, 4.0], index=[1, 2, 3, 9])
    assert with_gaps(holed)[0].tolist() == [1, 2, 3, 6, 9]
    assert blocks(holed)[0].tolist() == [0.5, 1.5, 2.5, 4.5, 7.5, 9.5]
    for drawn in (blocks, with_gaps):
        np.testing.assert_array_equal(drawn(holed)[1], [1.0, 2.0, 3.0, np.nan, 4.0])


def test_thirds_are_means_over_steps_latest_first_and_other_time_is_the_rest_of_steps_that_logged_all():
    rows = {step: {name: float(step * (i + 1)) for i, name in enumerate(metrics.BY_POSITION)} for step in range(1, 7)}
    rows[0] = {ACC.format(1): 0.5}  # a step without training is not part of any third
    labels, means = zip(*thirds(run_of(rows).frame), strict=True)
    assert labels == ("steps 5–6", "steps 3–4", "steps 1–2")
    np.testing.assert_allclose(means[0], 5.5 * np.arange(1, 9))
    times = {1: (5.0, 2.0, 1.5), 2: (5.0, 2.0), 3: (1.0, 2.0, 1.5)}
    rows = {step: dict(zip(metrics.TIMES, of, strict=False)) for step, of in times.items()}
    assert other_time(run_of(rows).frame).to_dict() == {1: 1.5, 3: 0.0}


def test_page_markdown_table_and_picture_say_the_same(written):
    page, rows = Page(written / "report.html"), realistic_steps()
    page.check_self_contained()
    assert len(page.drawings()) == 6 and "effective delta_b 0." in page.drawings()[3]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")
    assert "prefers-color-scheme: dark" in page.source and "@media print" in page.source
    assert "#2b6cb0" not in str(page.tags)  # colours come from the style
    for panel in list(data("panels.yaml").values())[:6]:
        assert panel["title"] in page.text and panel["caption"] in page.text
    before, after = (f"{100 * rows[step]['val-core/arithmetic/acc/mean@4']:.1f}%" for step in (0, 60))
    assert f"{before} → to {after}" in page.text and "after 60 steps" in page.text and "quantile" in page.text
    text = (written / "report.md").read_text(encoding="utf-8")
    assert text.startswith(f"# CPPO: validation accuracy {before} → {after} after 60 steps\n")
    assert "](report.png)" in text and "| Model | tiny-qwen3 |" in text
    assert {line.count(" |") for line in text[text.index("## Numbers") :].splitlines() if line.startswith("|")} == {5}
    table = pd.read_csv(written / "metrics.csv", index_col="step")
    assert table.index.tolist() == list(range(61))
    for step in (0, 17, 40, 41, 60):  # 40 is the checkpoint the run was resumed from
        assert table.loc[step].dropna().to_dict() == pytest.approx(rows[step], rel=1e-15)
    with Image.open(written / "report.png") as picture:
        assert picture.size[0] == 1800 and len(picture.convert("L").getcolors()) > 50
    assert sorted(path.name for path in written.iterdir()) == ["metrics.csv", "report.html", "report.md", "report.png"]


def test_the_same_panel_gives_the_same_bytes_and_matplotlib_is_left_as_it_was(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31.0)
    before = dict(matplotlib.rcParams)
    run = run_of({step: {metrics.MASKED: 0.01 * step} for step in range(1, 4)})
    panel = panels_of(run, number_rows(run))[1]
    assert svg(panel, "key") == svg(panel, "key")
    assert compose([panel], "title", kinds=("pdf",)) == compose([panel], "title", kinds=("pdf",))
    assert dict(matplotlib.rcParams) == before


def test_old_responses_and_steered_thresholds_have_panels_of_their_own(tmp_path):
    rows = realistic_steps(12)
    for step in range(1, 13):
        row = rows[step]
        row |= {metrics.BEHIND_MEAN: 1.2, metrics.BEHIND_MAX: 2, metrics.SPANNING: 0.25, metrics.SCALE: 1 + step / 10}
        row |= {P + "effective_sample_size/tokens": 0.9, P + "effective_sample_size/responses": 0.4}
        for i in range(3):
            row[metrics.FIRST_BY_STALENESS[i]] = 0.01 * i
            row[metrics.DIVERGENCE_BY_STALENESS[i]], row[metrics.MASKED_BY_STALENESS[i]] = 0.01 * i + 0.02, 0.03 * i
    loss = {"actor": {"policy_loss": {**LOSS, "anchor": "proximal", "budget_target": 0.08}}}
    save(tmp_path, {"actor_rollout_ref": loss, "trainer": {"v1": {"trust_region": {"mode": "colocate_async"}}}}, rows)
    run = read_run(tmp_path)
    found = panels_of(run, number_rows(run))
    assert len(found) == 9
    assert "versions behind, mean 1.20 to 1.20; versions behind, oldest 2.00 to 2.00" in found[6].words
    assert "newest weights 0 to 0; the same, one version behind 0.0100 to 0.0100" in found[7].words
    assert "scale of the thresholds 1.10 to 2.20" in found[8].words
    assert all("</svg>" in svg(panel, panel.key) for panel in found[6:])
    shown = {("Trainer", "colocate_async"), ("Anchor", "proximal"), ("Masked share asked for", "0.08")}
    assert shown <= set(settings_table(run.settings))


def test_missing_metrics_are_said_to_be_not_logged(tmp_path):
    write_log(tmp_path / "metrics-1.jsonl", [(1, {"critic/rewards/mean": 0.5}), (2, {"critic/rewards/mean": 0.6})])
    page = Page(reported(tmp_path) / "report.html")
    assert page.drawings() == [
        "Validation and training reward, first to last value: validation accuracy not logged; "
        "training reward 0.500 to 0.600."
    ]
    assert f"Not logged: {P}effective_delta_b, {P}prefix_average." in page.text
    assert "the settings are not known" in page.text


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_odd_values_are_drawn_or_left_out_without_failing(value):
    names = {name for row in realistic_steps(5).values() for name in row}
    run = run_of({0: dict.fromkeys(names, value), 1: dict.fromkeys(names, -1.0), 7: dict.fromkeys(names, math.inf)})
    for panel in panels_of(run, number_rows(run)):
        assert svg(panel, panel.key)


HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7*7 }} | <b>$x_1$"


def test_what_a_run_and_its_model_wrote_is_text_not_markup(tmp_path):
    write_log(tmp_path / "metrics-1.jsonl", [(s, {f"val-core/{HOSTILE}/acc/mean@1": 0.5}) for s in (0, 1)])
    (tmp_path / "start.txt").write_text(f"rule: cppo\n```\n{HOSTILE}")
    verdicts = [True, True, False, None, *[False] * 12]
    answers = [
        {"paper": i % 2 == 0, "acc": True, "verified": v, "gts": HOSTILE, "output": f"{HOSTILE} {i}", "step": 3}
        for i, v in enumerate(verdicts)
    ]
    dump = "\n".join(map(json.dumps, answers)) + '\n{"acc": tr'
    write_log(tmp_path / "validations/1.jsonl", []).write_text('{"acc": true, "output": "an old dump"}\n')
    (tmp_path / "validations/3.jsonl").write_text(dump.replace("14", "\u2028\u0085 14"))
    out = reported(tmp_path, "--title", f"<script>{HOSTILE}", "--out", tmp_path / "out")
    page = Page(out / "report.html")
    page.check_self_contained()
    assert not {"script", "b", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) > 7 and ">49 |" not in page.source
    assert "At the start rule: cppo" in page.text  # what the run said of itself
    # 16 answers, one not verified: 0 agrees, 1 and 2 do not, then every second one, which only the scorer takes
    assert "Of 15 validation answers" in page.text and "they disagree on 8 (53.3%)" in page.text
    assert "7 are right for math_dapo alone, 1 for math_verify alone" in page.text
    assert "Lines that could not be read: 1" in page.text
    assert [a["class"] for a in page.attributes("figure") if a.get("class") == "answer"] == ["answer"] * 5
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "<img" not in text.replace("```text\nrule: cppo\n'''\n" + HOSTILE, "").replace("\\<img", "")


def test_errors_are_sentences_notes_are_told_and_logs_side_by_side_have_a_report_each(tmp_path, capsys):
    assert status(tmp_path / "nowhere") == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("cppo-verl report: ") and "nowhere does not exist" in said.err
    good = write_log(tmp_path / "cppo.jsonl", [(1, {"a": 1}), (2, {"a": 2})]).read_text()
    (tmp_path / "dppo.jsonl").write_text(good.replace("\n", "\n{broken\n", 1))
    assert status(tmp_path / "cppo.jsonl") == 0
    assert str(tmp_path / "cppo-report/report.html") in capsys.readouterr().out
    assert status(tmp_path / "dppo.jsonl") == 1
    assert "dppo.jsonl, line 2" in capsys.readouterr().err
    out = reported(tmp_path / "dppo.jsonl", "--skip-bad-lines", "--out", tmp_path / "elsewhere", "--title", "My own")
    assert "1 damaged line was skipped" in capsys.readouterr().err
    page = Page(out / "report.html").text
    assert "1 damaged line was skipped" in page and "My own" in page
