"""A selftest from the command line to the page: stages that fail, die, hang or cannot run, and what is said of them."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

from cppo_verl import jsonlines
from cppo_verl.cli import main
from cppo_verl.launch import supervise
from cppo_verl.selftest import report, session
from cppo_verl.selftest.session import STAGES, Stage
from cppo_verl.selftest.stage import FAILS, HOLDS, NOT_RUN, NOTED, Result, Row, show
from tests import ROOT
from tests.selftest import machine, table


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")


def stage(name: str, limit: float = 60, needs=(), **more) -> Stage:
    return Stage(name, name, "tests.selftest.fake_stage", {"cpu": 1}, limit, dict(needs), options={"do": name}, **more)


def run(folder, *stages: Stage) -> tuple[dict[str, Result], str]:
    said: list[str] = []
    results = session.run(machine(folder), stages, said.append, lambda _: None)
    return {result.stage: result for result in results}, "\n".join(said)


@pytest.mark.stack
def test_every_end_of_a_stage_is_told_with_what_was_measured_before(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    earlier = tmp_path / "stages/raise/rows.jsonl"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("of an earlier call")
    results, said = run(tmp_path, stage("raise"), stage("die"), stage("hang", 5))
    assert [result.verdict for result in results.values()] == 3 * [FAILS]
    assert [len(result.rows) for result in results.values()] == [3, 1, 1]
    assert "FAILS gap: 0.300 m, limit 0.200 m" in said and "ZeroDivisionError: half of nothing" in said
    assert "exit status 9" in results["die"].reason and "out of yarn" in results["die"].reason
    assert "longer than 5 s" in results["hang"].reason
    assert not list(supervise.processes_of(tmp_path / "stages/hang"))  # nor its sleeping child


def test_what_a_killed_selftest_left_is_ended_and_two_do_not_share_a_folder(tmp_path):
    (tmp_path / "runs/one-topk").mkdir(parents=True)
    marked = {**os.environ, supervise.MARKER: str(tmp_path / "runs/one-topk")}
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=marked)
    with supervise.lock(tmp_path), pytest.raises(supervise.AlreadyRunning):
        run(tmp_path)
    assert left.poll() is None
    run(tmp_path)
    left.wait(10)


def test_what_this_machine_lacks_is_said_and_counts_as_neither(tmp_path):
    lacking = {
        "it needs 3 ranks and there are 2": {"needs": {"ranks": 3}},
        "not installed: no_such_package": {"packages": ("no_such_package",)},
        "it needs 100 GB disk and there are 8": {"needs": {"GB disk": 100}},
        "it comes after doctor, which did not hold": {"after": ("doctor",)},
    }
    results, _ = run(tmp_path, *(stage(reason, **needs) for reason, needs in lacking.items()))
    for reason, result in results.items():
        assert (result.verdict, result.reason) == (NOT_RUN, reason)
    small = machine(tmp_path, "cuda", 1, 4)
    assert STAGES["rules"].unmet(small) == "" and "8 GB a GPU and there are 4" in STAGES["losses"].unmet(small)
    assert STAGES["losses"].unmet(machine(tmp_path)) == ""
    assert "this machine has no GPU" in STAGES["rules"].unmet(machine(tmp_path, "", 0))


def test_the_machine_as_it_is_and_with_made_up_gpus(monkeypatch, tmp_path):
    here, facts = session.here(tmp_path / "not" / "there" / "yet")
    assert here.device == "cpu" and min(here.room.values()) > 0.1 and here.room["ranks"] == 2
    assert {"system", "Python", "verl", "torch", "source"} <= set(facts)
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace\n"
        "made_up = SimpleNamespace(name='Made-up 9000', total_memory=80e9)\n"
        "cuda = SimpleNamespace(device_count=lambda: 2, get_device_properties=lambda index: made_up)\n"
    )
    monkeypatch.delenv("VERL_PLATFORM")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    here, facts = session.here(tmp_path)
    assert (here.device, here.room["ranks"], here.room["GB a GPU"]) == ("cuda", 2, 80)
    assert facts["GPUs"] == "Made-up 9000, 80 GB; Made-up 9000, 80 GB"


def test_a_limit_is_a_limit_and_every_row_is_on_disk_at_once(tmp_path):
    made = table(tmp_path)
    for measured in (0.9, 1.0, 1.1, math.nan, math.inf):
        made.at_most("x", measured, 1.0, 0.5, unit="GB", note="why")
        assert len(jsonlines.read(made.path)[0]) == len(made.rows)
    assert [row.verdict for row in made.rows] == [HOLDS, HOLDS, FAILS, FAILS, FAILS]
    assert Row(**jsonlines.read(made.path)[0][3]) == Row("x", FAILS, "nan", 0.5, 1.0, "GB", "why")
    shown = {"1,234,567": 1_234_567, "0.0123": 0.0123456, "4.32e-7": 4.321e-7, "yes": True, "": None, "ok": "ok"}
    assert all(show(value) == text for text, value in shown.items()) and show(3, "s") == "3 s"


def test_the_page_stands_alone_is_escaped_and_says_what_the_others_say(tmp_path):
    home = os.path.expanduser("~")
    good = Result("doctor", HOLDS, [Row("versions", HOLDS, "ok", "ok", note=f"verl <0.9.1> in {home}/x")], 12.4)
    rows = [Row("gap", FAILS, 0.31, 0.1, 0.2, "GB"), Row("time | it took", NOTED, 1234.5, unit="s")]
    bad = Result("rules", FAILS, rows, 3.0, "died:\n<b>last</b> words ```")
    lacking = Result("all-sp2", NOT_RUN, reason="not installed: flash_attn")
    report.write(tmp_path, "cpu", {"system": "a <table>", "verl": "0.9.1"}, [good, bad, lacking])
    page, text = (tmp_path / report.PAGE).read_text(), (tmp_path / report.TEXT).read_text()
    assert not re.search(r"<script|<link|<img|src=|https?://|@import|url\(", page)
    assert set(re.findall(r'href="#([^"]+)"', page)) == set(re.findall(r'<section id="([^"]+)"', page))
    assert "verl &lt;0.9.1&gt; in ~/x" in page and "&lt;b&gt;last&lt;/b&gt; words" in page and "a &lt;table&gt;" in page
    assert "because not installed: flash_attn." in page and 'class="stage not-run-here"' in page
    said = "1 of 2 stages hold; rules fails; not run here: all-sp2"
    assert json.loads((tmp_path / report.DATA).read_text())["sentence"] == said
    assert said in page and said in text and "1234 s" in page and "| 1234 s |" in text
    assert "| time \\| it took |" in text and "words '''" in text


def test_list_says_what_stages_need_and_take(capsys, tmp_path):
    assert main.main(["selftest", "--list", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + said for name in STAGES)
    assert "about 110 s  One rank, binary divergence" in said
    asked = [stage.name for stage in session.chosen("rules,all-topk")]
    assert asked == ["doctor", "rules", "tiny", "all-topk"]
    for one in STAGES.values():
        assert set(one.seconds) == {"cpu", "cuda"} and max(one.seconds.values()) * 4 <= one.limit
        assert set(one.after) <= set(STAGES)


def test_an_unknown_stage_is_named_before_anything_runs(capsys, tmp_path):
    assert main.main(["selftest", "--out", str(tmp_path / "out"), "--stages", "rules,ruls"]) == 2
    assert "--stages ruls: no such stage; there are doctor, rules" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_exit_status(monkeypatch, tmp_path):
    for verdict, strict, status in ((HOLDS, "", 0), (FAILS, "", 1), (NOT_RUN, "", 0), (NOT_RUN, "--strict", 1)):
        results = [Result("rules", HOLDS), Result("losses", verdict)]
        monkeypatch.setattr(session, "run", lambda *_, results=results: results)
        assert main.main(["selftest", "--out", str(tmp_path), *strict.split()]) == status
