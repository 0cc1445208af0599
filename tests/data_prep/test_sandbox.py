"""Processes without rights: what they may do, as root and as anybody; limits; workers that do not start."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from data_prep import confinement
from data_prep.sandbox import Bounded, Sandbox, SandboxError
from tests import ROOT

MODULE = "tests.data_prep.hostile_functions"
FILES = ("delete", "rename", "truncate", "create", "append", "mode", "folder", "link", "read", "environment")
PROCESSES = ("fork", "command", "thread", "signal", "trace", "owner", "clock", "deaf")
REFUSED = (*FILES, *PROCESSES, "connect", "datagram")


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(MODULE)
    yield made
    made.stop()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("whole")
    return path


@pytest.mark.parametrize("what", REFUSED)
def test_a_fork_can_do_nothing_but_compute(sandbox, victim, what):
    before = sorted(os.listdir(victim.parent))
    assert sandbox.call("attempt", [what, str(victim)], 10.0, 256) == "refused"
    assert victim.read_text() == "whole" and sorted(os.listdir(victim.parent)) == before


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


def test_what_libraries_do_still_works(sandbox):
    assert sandbox.call("compute", ["3/4"], 30.0, 512) == ["0.75", "colorsys"]  # the second is imported late


@pytest.mark.parametrize("what", ["spin", "swell", "recurse", "crash", "shout", "raise_error"])
def test_a_call_without_result_is_bounded_and_the_next_one_is_not(sandbox, what):
    start = time.monotonic()
    with pytest.raises(Bounded):
        sandbox.call(what, [], 0.3, 128)
    assert what != "spin" or 0.2 < time.monotonic() - start < 13.5  # of processor time
    assert sandbox.call("compute", ["1/2"], 30.0, 512)[0] == "0.5"


def test_calls_from_many_threads(sandbox):
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: sandbox.call("compute", [f"{i}/1"], 30.0, 512)[0], range(24)))
    assert found == [str(i) for i in range(24)]


def test_a_killed_worker_is_replaced_and_leaves_nobody(sandbox):
    sandbox.call("compute", ["1/2"], 30.0, 512)
    worker = sandbox._idle.queue[-1]
    thread = threading.Thread(target=lambda: pytest.raises(Bounded, sandbox.call, "spin", [], 20.0, 128))
    thread.start()
    process = psutil.Process(worker.process.pid)
    while not (children := process.children()):
        time.sleep(0.01)
    process.kill()
    thread.join(60)
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert sandbox.call("compute", ["1/2"], 30.0, 512)[0] == "0.5"


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(monkeypatch):
    with pytest.raises(SandboxError, match=r"did not start: ModuleNotFoundError.*No answer is judged"):
        Sandbox("data_prep.no_such_module").call("marks", [], 1.0, 64)
    with pytest.raises(SandboxError, match=r"compute\['1/2'\] gave b'\[\"0.5\".* without rights"):
        Sandbox("tests.data_prep.broken_functions").call("compute", ["1/2"], 1.0, 64)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxError, match="it ended with status 1"):
        Sandbox(MODULE).call("compute", ["1/2"], 1.0, 64)


def test_a_system_that_takes_no_rights_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert confinement.remaining_rights() == []
    monkeypatch.setattr(confinement, "give_up_rights", lambda *limits: None)
    assert "create a file" in confinement.remaining_rights() and "start a process" in confinement.remaining_rights()
    monkeypatch.undo()
    monkeypatch.setattr(confinement.platform, "machine", lambda: "riscv64")
    with pytest.raises(confinement.ConfinementError, match="no sandbox on linux riscv64"):
        confinement._program()
