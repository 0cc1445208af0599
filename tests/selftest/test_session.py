"""A selftest from the first stage to the page: kept results, stages that fail, die or hang, a killed selftest."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cppo_verl.launch import supervise
from cppo_verl.selftest import report, session
from cppo_verl.selftest.machine import Machine
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.stages import Needs, Stage
from cppo_verl.selftest.table import FAILS, HOLDS, NOT_RUN
from tests import ROOT

HERE = Machine("cpu", host_gb=8, disk_gb=8, facts={"system": "a table"})


LITTLE = Needs(host_gb=0.1)


def stage(name: str, limit: float = 60, needs: Needs = LITTLE, **options) -> Stage:
    return Stage(name, f"Stage {name}", "tests.selftest.fake_stage", {"cpu": 1, "cuda": 1}, limit, needs, options)


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


def test_every_end_of_a_stage_is_told(setting):
    stages = [stage("a"), *(stage(do, do=do) for do in ("fail", "stop", "raise", "die")), stage("hang", 3, do="hang")]
    results, said = run(setting, *stages)
    assert {name: result.verdict for name, result in results.items()} == {"a": HOLDS} | dict.fromkeys(
        ("fail", "stop", "raise", "die", "hang"), FAILS
    )
    assert all(result.rows[0].what == "first row" for result in results.values())  # what was measured before is kept
    assert "FAILS gap: 0.3 m, limit 0.2 m" in said
    assert results["stop"].reason.startswith("it has no bread")
    assert "ZeroDivisionError: half of nothing" in results["raise"].reason
    assert "its process ended with exit status 9" in results["die"].reason and "out of yarn" in results["die"].reason
    assert "it took longer than 3 s" in results["hang"].reason
    assert not list(supervise.processes_of(setting.out / "stages" / "hang"))  # nor its sleeping child


def test_what_holds_is_kept_and_what_failed_is_tried_again(setting):
    stages = [stage("good"), stage("bad", do="fail")]
    first, _ = run(setting, *stages)
    second, _ = run(setting, *stages)
    assert second["good"] == first["good"]
    assert (times_run(setting, "good"), times_run(setting, "bad")) == (1, 2)


@pytest.mark.parametrize("what", ["options", "machine", "setting"])
def test_a_result_of_something_else_is_not_kept(setting, what):
    run(setting, stage("good"))
    other, here = stage("good"), HERE
    if what == "options":
        other = stage("good", extra=1)
    elif what == "machine":
        here = dataclasses.replace(HERE, facts={"system": "a chair"})
    else:
        setting = dataclasses.replace(setting, steps=9)
    run(setting, other, here=here)
    assert times_run(setting, "good") == 2


def test_what_this_machine_lacks_is_said_and_counts_as_neither(setting):
    lacking = {
        "gpus": (Needs(ranks=3), "it needs 3 GPUs and this machine has 2"),
        "package": (Needs(packages=("no_such_package",)), "not installed: no_such_package"),
        "memory": (Needs(host_gb=100), "it needs 100 GB of free memory and there are 8.0"),
        "disk": (Needs(disk_gb=100), "it needs 100 GB of free disk and there are 8.0"),
        "after": (Needs(after=("doctor",)), "it comes after doctor, which did not hold"),
    }
    results, said = run(setting, *(stage(name, needs=needs) for name, (needs, _) in lacking.items()))
    for name, (_, reason) in lacking.items():
        assert results[name].verdict == NOT_RUN
        assert results[name].reason == reason
        assert f"not run here: {reason}" in said
    nothing = Machine("", host_gb=8, disk_gb=8)
    results, _ = run(setting, stage("a"), stage("b", needs=Needs(ranks=0)), here=nothing)
    assert "this machine has no GPU" in results["a"].reason
    assert results["b"].verdict == HOLDS


def test_a_stage_that_comes_after_another_runs_when_that_held_in_an_earlier_call(setting, monkeypatch):
    first, second = stage("first"), stage("second", needs=Needs(host_gb=0.1, after=("first",)))
    monkeypatch.setattr(session, "STAGES", (first, second))
    assert run(setting, second)[0]["second"].verdict == NOT_RUN
    run(setting, first)
    assert run(setting, second)[0]["second"].verdict == HOLDS


def test_a_killed_selftest_goes_on_at_the_unfinished_stage(setting):
    """SIGKILL while the second stage hangs; what it started is ended by the next call."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom cppo_verl.selftest.setting import Setting\n"
        "from tests.selftest.test_session import HERE, session, stage\n"
        "session.run(Setting(Path(sys.argv[1]), 'cpu', 2), HERE, [stage('good'), stage('late', do='hang')], print, "
        "lambda _: None)"
    )
    command = [sys.executable, "-c", program, str(setting.out)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (setting.out / "late.count").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    left = list(supervise.processes_of(setting.out / "stages" / "late"))
    assert left
    results, _ = run(setting, stage("good"), stage("late"))
    assert times_run(setting, "good") == 1 and times_run(setting, "late") == 2
    assert {result.verdict for result in results.values()} == {HOLDS}
    assert not [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_second_selftest_in_the_same_folder_is_refused(setting):
    with supervise.lock(setting.out), pytest.raises(supervise.AlreadyRunning):
        run(setting, stage("a"))


def test_a_damaged_result_is_measured_again(setting):
    run(setting, stage("good"))
    (setting.out / "results/good.json").write_text('{"stage": "good", "ver')
    run(setting, stage("good"))
    assert times_run(setting, "good") == 2
    assert json.loads((setting.out / "results/good.json").read_text())["verdict"] == HOLDS


def test_fresh_deletes_a_selftest_and_nothing_else(setting):
    run(setting, stage("good"))
    with pytest.raises(session.SelftestError, match="no selftest wrote"):
        session.clear(setting.out)
    report.write(setting.out, HERE, [])
    session.clear(setting.out)
    assert not setting.out.exists()
    session.clear(setting.out)  # nothing there is nothing to do


def test_no_secret_and_no_home_folder_is_kept(setting, monkeypatch):
    monkeypatch.setenv("CANARY_TOKEN", "canary-3b9d52")
    results, _ = run(setting, stage("good"))
    assert results["good"].rows[0].note == "token *** in ~/x"
    assert "canary-3b9d52" not in (setting.out / "results/good.json").read_text()
