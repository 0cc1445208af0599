"""The launcher's promises, with real processes: it ends, it says why, and it leaves nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cppo_verl.launch import supervise


def child(source: str) -> list[str]:
    return [sys.executable, "-u", "-c", source]


def start(source: str, run_dir: Path, **options) -> None:
    supervise.run(child(source), run_dir, run_dir / "console.log", {}, tick=0.1, **options)


def wait_until(what) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# A trainer that waits forever, with an essential worker that dies after a second.
LOST_WORKER = """
import subprocess, sys, time
subprocess.Popen(["bash", "-c", "exec -a 'ray::WorkerDict    ' sleep 1"]).wait()
print("WorkerDict: RuntimeError: out of memory")
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{}['missing']", r"exit status 1[\s\S]*KeyError: 'missing'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("import time; print('last sign of life'); time.sleep(60)", "no output for 3 s[\\s\\S]*last sign of life"),
        (LOST_WORKER, r"ray::WorkerDict 1 \(pid \d+\) died[\s\S]*RuntimeError: out of memory"),
    ],
)
def test_a_run_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch, source, said):
    monkeypatch.setattr(supervise, "GRACE", 0.5)
    with pytest.raises(supervise.RunFailed, match=said):
        start(source, tmp_path, stall_timeout=3)
    assert not list(supervise.processes_of(tmp_path))


# The end of a run: the workers go, and the trainer takes longer than the grace to follow.
SLOW_END = """
import subprocess, time
subprocess.Popen(["bash", "-c", "exec -a 'ray::WorkerDict' sleep 1"]).wait()
time.sleep(1.5)
"""


def test_workers_that_go_after_the_last_step_are_no_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "GRACE", 0.5)
    start(SLOW_END, tmp_path, ended=lambda: True)
    monkeypatch.setattr(supervise, "FAREWELL", 0.5)
    with pytest.raises(supervise.RunFailed, match="ray::WorkerDict"):
        start(SLOW_END, tmp_path, ended=lambda: True)


ORPHAN = """
import multiprocessing.shared_memory as m, subprocess, sys, time
s = m.SharedMemory(create=True, size=4096)
print(s.name)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
time.sleep(1)
import os; os._exit(0)
"""


def test_a_good_run_is_cleaned_up_and_what_a_killed_launcher_left(tmp_path):
    environment = {**os.environ, supervise.MARKER: str(tmp_path.resolve())}
    left = subprocess.Popen(child("import time; time.sleep(300)"), env=environment, start_new_session=True)
    start(ORPHAN, tmp_path)
    assert not psutil.pid_exists(left.pid)
    assert not list(supervise.processes_of(tmp_path))
    assert not Path("/dev/shm", (tmp_path / "console.log").read_text().strip()).exists()


def test_stopping_the_launcher_stops_the_run_which_no_other_can_share(tmp_path):
    source = (
        "from pathlib import Path; from cppo_verl.launch import supervise; import sys\n"
        "run = Path(sys.argv[1]); supervise.raise_on_terminate()\n"
        "try: supervise.run([sys.executable, '-c', 'import time; time.sleep(300)'], run, run / 'console.log', {})\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    launcher = subprocess.Popen([*child(source), str(tmp_path)])
    try:
        wait_until(lambda: list(supervise.processes_of(tmp_path.resolve())))
        with pytest.raises(supervise.AlreadyRunning, match="in use by another run"):
            start("print('hello')", tmp_path)
        launcher.terminate()
        assert launcher.wait(timeout=60) == 130
        assert not list(supervise.processes_of(tmp_path.resolve()))
    finally:
        launcher.kill()
        supervise.end_processes(tmp_path.resolve())


def test_nohup_outlives_its_terminal():
    source = (
        "import signal; from cppo_verl.launch import supervise; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "supervise.raise_on_terminate(); signal.raise_signal(signal.SIGHUP); print('still here')"
    )
    assert subprocess.run(child(source), capture_output=True, text=True).stdout == "still here\n"


def test_a_forked_helper_is_not_a_lost_worker(tmp_path):
    """``datasets`` forks workers that keep Ray's process title and end when their work is done."""
    source = "(sleep 300; true) & sleep 300; true"  # the parentheses are a fork with the same title
    title, environment = "ray::TaskRunnerV1.run", {**os.environ, supervise.MARKER: str(tmp_path)}
    worker = subprocess.Popen([title, "-c", source], executable="/bin/bash", env=environment)
    try:
        watch = supervise.Watch()
        wait_until(lambda: len(list(supervise.processes_of(tmp_path))) == 4)  # worker, fork and a sleep of each
        assert watch.look(tmp_path) == ""
        (fork,) = [p for p in psutil.Process(worker.pid).children() if supervise.title(p).startswith(title)]
        fork.kill()
        wait_until(lambda: len(list(supervise.processes_of(tmp_path))) == 3)
        assert watch.look(tmp_path) == ""
        assert list(watch.essential) == [worker.pid]
        worker.kill()
        worker.wait()
        lost = watch.look(tmp_path)
        assert lost.startswith(title) and lost.endswith(f"(pid {worker.pid})")
    finally:
        worker.kill()
        supervise.end_processes(tmp_path)
