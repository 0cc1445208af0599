"""Processes without rights: what they may do, also where the tests run as root; limits; workers that do not start."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from data_prep import confinement, sandbox
from data_prep.sandbox import Bounded, Sandbox, SandboxError
from tests import ROOT
from tests.data_prep import hostile_functions

MODULE = "tests.data_prep.hostile_functions"
REFUSED = [
    *["delete", "rename", "truncate", "create", "append", "mode", "folder", "link", "read", "environment"],
    *["fork", "command", "thread", "signal", "trace", "owner", "clock", "deaf", "connect", "datagram"],
]


@pytest.fixture(scope="module")
def judge():
    made = Sandbox(MODULE)
    yield made
    made.stop()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("whole")
    return path


def test_a_fork_can_do_nothing_but_compute(judge, victim):
    for what in REFUSED:
        assert judge.call("attempt", [what, str(victim)], 10.0, 256) == "refused", what
        assert victim.read_text() == "whole" and os.listdir(victim.parent) == ["victim"]
    assert judge.call("compute", ["3/4"], 30.0, 512) == ["0.75", "colorsys"]  # the second is imported late


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_nobody_can_do_no_more(victim):
    os.chmod(victim, 0o666)
    for folder in (victim.parent, *victim.parents):
        if folder != Path("/"):
            os.chmod(folder, 0o777 if folder == victim.parent else folder.stat().st_mode | 0o055)
    program = (
        "import os, sys; import tests.data_prep.hostile_functions as hostile; from data_prep import confinement\n"
        "os.setuid(65534); confinement.give_up_rights(30.0, 256)\n"
        "print([w for w in sys.argv[2:] if hostile.attempt(w, sys.argv[1]) != 'refused'])\n"
    )
    command = [sys.executable, "-c", program, str(victim), *REFUSED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
    assert victim.read_text() == "whole"


@pytest.mark.parametrize("what", ["spin", "swell", "recurse", "crash", "shout", "raise"])
def test_a_call_without_result_is_bounded_and_the_next_one_is_not(judge, what):
    start = time.monotonic()
    with pytest.raises(Bounded):
        judge.call("come_to_nothing", [what], 0.3, 128)
    assert what != "spin" or 0.2 < time.monotonic() - start < 13.5  # of processor time
    assert judge.call("compute", ["1/2"], 30.0, 512)[0] == "0.5"


def test_a_killed_worker_is_replaced_and_leaves_nobody(judge):
    judge.call("compute", ["1/2"], 30.0, 512)
    process = psutil.Process(judge._idle.queue[-1].running[0].pid)
    thread = threading.Thread(target=lambda: pytest.raises(Bounded, judge.call, "come_to_nothing", ["spin"], 20.0, 128))
    thread.start()
    while not (children := process.children()) or children[0].cpu_times().user < 0.1:  # it spins, without its rights
        time.sleep(0.01)
    process.kill()
    thread.join(60)
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert judge.call("compute", ["1/2"], 30.0, 512)[0] == "0.5"


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(monkeypatch):
    with pytest.raises(SandboxError, match=r"did not start: ModuleNotFoundError.*No answer is judged"):
        Sandbox("data_prep.no_such_module").call("marks", [], 1.0, 64)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxError, match="it ended with status 1"):
        Sandbox(MODULE).call("compute", ["1/2"], 1.0, 64)


@pytest.mark.parametrize(
    ("of", "name", "value", "fault"),
    [
        (hostile_functions, "TRIAL", ("compute", ["1/2"], ["0.25"]), 'gave b\'["0.5", "colorsys"]\' without'),
        (hostile_functions, "prepare", lambda: 1 / 0, "ZeroDivisionError"),
        (confinement, "give_up_rights", lambda *limits: None, '["create a file", "delete a file"'),
        (confinement, "_prctl", lambda *arguments: False, "can still do: unknown"),
        (confinement.platform, "machine", lambda: "riscv64", "ConfinementError: no sandbox on linux riscv64"),
    ],
)
def test_a_system_that_takes_no_rights_or_does_not_compute_is_refused(monkeypatch, tmp_path, of, name, value, fault):
    """In a worker's own loop, which says what is wrong and ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(of, name, value)
    ours, theirs = sandbox.Pipe()
    sandbox.serve(os.dup(theirs.fileno()), MODULE)
    assert fault in ours.recv_bytes().decode()
