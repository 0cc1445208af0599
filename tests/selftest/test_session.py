"""A selftest from the first stage to the page: kept results, stages that fail, die or hang, a killed selftest."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cppo_verl.launch import supervise
from cppo_verl.selftest import report, session
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.setting import SelftestError, Setting
from cppo_verl.selftest.stages import STAGES, Needs, Stage
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN, Result, Row, judged, show
from tests import ROOT
from tests.selftest import table

HERE = Machine("cpu", host_gb=8, disk_gb=8, facts={"system": "a <table>", "verl": "0.9.1"})


def stage(name: str, limit: float = 60, needs: Needs | None = None, **options) -> Stage:
    own = needs or Needs(host_gb=0.1)
    return Stage(name, f"Stage {name}", "tests.selftest.fake_stage", {"cpu": 1, "cuda": 1}, limit, own, options)


@pytest.fixture
def setting(tmp_path, monkeypatch) -> Setting:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Setting(tmp_path, "cpu", 2)


def run(setting: Setting, *stages: Stage, here: Machine = HERE):
    said: list[str] = []
    results = session.run(setting, here, stages, said.append, lambda _: None)
    return {result.stage: result for result in results}, "\n".join(said)


def times_run(setting: Setting, name: str) -> int:
    return len((setting.out / f"{name}.count").read_text())


def test_every_end_of_a_stage_is_told(setting, monkeypatch):
    monkeypatch.setenv("CANARY_TOKEN", "canary-3b9d52")
    stages = [stage("a"), *(stage(do, do=do) for do in ("fail", "stop", "raise", "die")), stage("hang", 5, do="hang")]
    results, said = run(setting, *stages)
    assert [result.verdict for result in results.values()] == [HOLDS] + 5 * [FAILS]
    assert all(result.rows[0].what == "first row" for result in results.values())  # what was measured before is kept
    assert results["a"].rows[0].note == "token *** in ~/x"  # no secret, no home folder
    assert "canary-3b9d52" not in (setting.out / "results/a.json").read_text()
    assert "FAILS gap: 0.3 m, limit 0.2 m" in said and not results["fail"].reason
    assert [row.what for row in results["fail"].rows] == ["first row", "gap", "last row"]
    assert results["stop"].reason.startswith("it has no bread")
    assert "ZeroDivisionError: half of nothing" in results["raise"].reason
    assert "exit status 9" in results["die"].reason and "out of yarn" in results["die"].reason
    assert "longer than 5 s" in results["hang"].reason
    assert not list(supervise.processes_of(setting.out / "stages" / "hang"))  # nor its sleeping child


def test_what_holds_is_kept_until_something_changes_and_what_failed_is_tried_again(setting):
    good, bad = stage("good"), stage("bad", do="fail")
    first, _ = run(setting, good, bad)
    second, _ = run(setting, good, bad)
    assert second["good"] == first["good"]
    assert (times_run(setting, "good"), times_run(setting, "bad")) == (1, 2)
    run(setting, stage("good", extra=1))
    run(setting, good, here=dataclasses.replace(HERE, facts={"system": "a chair"}))
    run(dataclasses.replace(setting, steps=9), good)
    assert times_run(setting, "good") == 4
    (setting.out / "results/good.json").write_text('{"stage": "good", "ver')  # damaged
    run(setting, good)
    assert times_run(setting, "good") == 5


def test_what_this_machine_lacks_is_said_and_counts_as_neither(setting):
    lacking = {
        "gpus": (Needs(ranks=3), "needs 3 GPUs and this machine has 2"),
        "package": (Needs(packages=("no_such_package",)), "not installed: no_such_package"),
        "memory": (Needs(host_gb=100), "needs 100 GB of free memory and there are 8.0"),
        "disk": (Needs(disk_gb=100), "needs 100 GB of free disk and there are 8.0"),
        "after": (Needs(after=("doctor",)), "comes after doctor"),
    }
    results, _ = run(setting, *(stage(name, needs=needs) for name, (needs, _) in lacking.items()))
    for name, (_, reason) in lacking.items():
        assert results[name].verdict == NOT_RUN and reason in results[name].reason
    assert "no GPU" in stage("a").unmet(Machine("", host_gb=8, disk_gb=8), setting, {})


def test_a_killed_selftest_goes_on_at_the_unfinished_stage(setting):
    """SIGKILL while the second stage hangs; what it started is ended by the next call."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.selftest.test_session import *\n"
        "stages = [stage('good'), stage('late', do='hang')]\n"
        "session.run(Setting(Path(sys.argv[1]), 'cpu', 2), HERE, stages, print, print)"
    )
    first = subprocess.Popen([sys.executable, "-c", program, str(setting.out)], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (setting.out / "late.count").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(supervise.AlreadyRunning):
        run(setting, stage("a"))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    left = list(supervise.processes_of(setting.out / "stages" / "late"))
    assert left
    results, _ = run(setting, stage("good"), stage("late"))
    assert times_run(setting, "good") == 1 and times_run(setting, "late") == 2
    assert {result.verdict for result in results.values()} == {HOLDS}
    assert not [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_fresh_deletes_a_selftest_and_nothing_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SelftestError, match="--fresh would delete"):
        session.clear(tmp_path)
    report.write(tmp_path, HERE, [])
    session.clear(tmp_path)
    assert not tmp_path.exists()


def test_a_limit_is_a_limit_and_rows_survive_json(tmp_path):
    made = table(tmp_path)
    for measured in (0.9, 1.0, 1.1, math.nan, math.inf):
        made.at_most("x", measured, 1.0, 0.5, "GB", "why")
    assert [row.verdict for row in made.rows] == [HOLDS, HOLDS, FAILS, FAILS, FAILS]
    again = Result.from_json(json.loads(made.path.read_text()))
    assert again.rows[3] == Row("x", FAILS, "nan", 0.5, 1.0, "GB", "why")
    assert (again.verdict, again.reason) == (FAILS, "the stage did not come to its end")
    assert judged("rules", []).verdict == FAILS and judged("rules", again.rows[:2]).verdict == HOLDS


SHOWN = {"0": 0, "1,234,567": 1_234_567, "1.23": 1.23456, "0.0123": 0.0123456, "4.32e-07": 4.321e-7}
SHOWN |= {"12,346": 12_345.678, "yes": True, "no": False, "": None, "ok": "ok"}


@pytest.mark.parametrize("text", SHOWN)
def test_numbers_read_well(text):
    assert show(SHOWN[text]) == text
    assert show(3.0, "s") == "3 s" and show("ok", "GB") == "ok"


def test_the_page_stands_alone_is_escaped_and_says_what_the_others_say(tmp_path):
    good = judged("doctor", [Row("versions", HOLDS, "ok", "ok", note="verl <0.9.1>")], 12.4)
    rows = [Row("gap", FAILS, 0.31, 0.1, 0.2, "GB"), Row("time | it took", "noted", 1234.5, unit="s")]
    bad = judged("rules", rows, 3.0, "died:\n<b>last</b> words ```")
    report.write(tmp_path, HERE, [good, bad, Result("all-sp2", NOT_RUN, reason="not installed: flash_attn")])
    page, text = (tmp_path / report.PAGE).read_text(), (tmp_path / report.TEXT).read_text()
    assert not re.search(r"<script|<link|<img|src=|https?://|@import|url\(", page)
    assert set(re.findall(r'href="#([^"]+)"', page)) == set(re.findall(r'<section id="([^"]+)"', page))
    assert "verl &lt;0.9.1&gt;" in page and "&lt;b&gt;last&lt;/b&gt; words" in page and "a &lt;table&gt;" in page
    assert "because not installed: flash_attn." in page
    said = "1 of 2 stages hold; rules fails; not run here: all-sp2"
    assert json.loads((tmp_path / report.DATA).read_text())["sentence"] == said
    assert said in page and said in text and "1,234 s" in page and "| 1,234 s |" in text
    assert "| time \\| it took |" in text and "words '''" in text


def test_stages_have_names_titles_and_more_time_than_expected():
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    for one in STAGES:
        assert set(one.seconds) == {"cpu", "cuda"} and max(one.seconds.values()) * 4 <= one.limit
        assert set(one.needs.after) <= set(names)
