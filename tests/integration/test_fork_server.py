"""The server that forks a run's processes on the CPU: what it makes of them, and what holds where it cannot serve.

It imports torch, and a module in the place of all that imports Ray; the real list runs in ``tests/e2e``.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cppo_verl.integration.cpu import fork_server
from tests import ROOT

SERVER = """
import socket, sys
from cppo_verl.integration.cpu import fork_server
fork_server.WITHOUT_RAY, fork_server.WITH_RAY = ["torch", "not_installed"], ["in_rays_place"]
fork_server.serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
"""
IN_RAYS_PLACE = """
import os
from ray._raylet import ObjectRef

JOB = os.environ.get("RAY_JOB_ID")
drawn = lambda: ObjectRef.from_random().hex()
drawn()  # as importing an actor's class does; it seeds what is drawn later
"""
ABOUT = """
import in_rays_place, json, os, sys, numpy, torch
print(json.dumps({
    "arguments": sys.argv, "path": sys.path[:2], "folder": os.getcwd(), "environment": dict(os.environ),
    "main": sys.modules["__main__"].__file__, "drawn": numpy.random.random(), "threads": torch.get_num_threads(),
    "job": in_rays_place.JOB, "parent": os.getppid(), "named": in_rays_place.drawn()}))
"""
PARENT = "import os; print(os.getppid())"
SPAWN = """
import multiprocessing, os, sys

def square(number, answer):
    answer.put((number * number, "in_rays_place" in sys.modules, multiprocessing.parent_process().pid))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=square, args=(7, answer))
    child.start()
    assert answer.get(timeout=60) == (49, True, os.getpid())
    child.join()
    sys.exit(child.exitcode)
"""
ENDS = """
import atexit, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.5), print("thread"))).start()
print(sys.stdin.read(), file=sys.stderr)
sys.exit(3)
"""
WAIT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server's Python, the environment of the job that it serves, and its process."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "server.py").write_text(SERVER)
    (folder / "in_rays_place.py").write_text(IN_RAYS_PLACE)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    with fork_server.ForkServer() as server, pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        popen = subprocess.Popen
        light = [sys.executable, str(folder / "server.py")]
        patch.setattr(subprocess, "Popen", lambda command, **options: popen([*light, *command[3:]], **options))
        server.start(environment, log)
        patch.undo()
        job = {**environment, "RAY_JOB_ID": "01000000"}
        python = server.variables[fork_server.PYTHON]
        assert run(python, folder / "first.py", PARENT, job).stdout == f"{server._process.pid}\n"
        yield python, job, server._process.pid


def run(python: str, script: Path, source: str, environment, *arguments: str, **options):
    script.write_text(source)
    command = [python, "-B", str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not psutil.pid_exists(pid)


def test_a_fork_is_the_program_that_was_asked_for(served, tmp_path):
    python, job, server = served
    values = {**job, "PYTHONPATH": "/of/the/client", "OMP_NUM_THREADS": "2", "ONLY_HERE": "1"}
    del values["VERL_PLATFORM"]
    script = tmp_path / "program.py"
    told, again = (
        json.loads(run(python, script, ABOUT, values, "-u", "two words", cwd=tmp_path).stdout) for _ in range(2)
    )
    of_the_shell = {"PWD", "OLDPWD", "_", "SHLVL"}
    assert {k: v for k, v in told["environment"].items() if k not in of_the_shell} == {
        k: v for k, v in values.items() if k not in of_the_shell
    }
    assert told["arguments"] == [str(script), "-u", "two words"] and told["main"] == str(script)
    assert told["path"] == [str(tmp_path), "/of/the/client"]  # where the module in Ray's place is not
    assert (told["folder"], told["threads"], told["parent"]) == (str(tmp_path), 2, server)
    assert told["job"] == "01000000"  # it was not imported before the job's environment was there
    assert told["drawn"] != again["drawn"] and told["named"] != again["named"]


def test_programs_end_as_they_would(served, tmp_path):
    """Output, status, threads and exit handlers; a traceback; and what a fork spawns, which is forked too."""
    python, job, _ = served
    done = run(python, tmp_path / "ends.py", ENDS, job, input="in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "thread\nat exit\n", "in\n")
    failed = run(python, tmp_path / "fails.py", "raise KeyError('lost')", job)
    assert failed.returncode == 1 and failed.stderr.endswith("KeyError: 'lost'\n")
    spawned = run(python, tmp_path / "spawns.py", SPAWN, job)
    assert spawned.returncode == 0, spawned.stderr


@pytest.mark.parametrize(("to_the_fork", "number", "status"), [(False, 15, 7), (False, 9, -9), (True, 9, 1)])
def test_client_and_fork_end_with_each_other(served, tmp_path, to_the_fork, number, status):
    python, job, _ = served
    (tmp_path / "waits.py").write_text(WAIT)
    client = subprocess.Popen([python, str(tmp_path / "waits.py")], env=job, stdout=subprocess.PIPE, text=True)
    fork = int(client.stdout.readline())
    os.kill(fork if to_the_fork else client.pid, number)
    assert client.wait(timeout=60) == status
    assert gone(fork)  # nor is it left as a zombie


@pytest.mark.parametrize(
    ("other", "arguments"),
    [
        ({"RAY_JOB_ID": "02000000"}, ["{script}"]),  # what was imported for another job
        ({"RAY_RAYLET_PID": "1"}, ["{script}"]),
        ({"PYTHONHASHSEED": "7"}, ["{script}"]),  # another order of Python's sets
        ({}, ["-I", "{script}"]),  # an option that changes Python
        ({}, ["-c", PARENT]),
    ],
)
def test_what_cannot_be_served_gets_a_plain_python(served, tmp_path, other, arguments):
    """Also where no server is."""
    python, job, server = served
    (tmp_path / "program.py").write_text(PARENT)
    command = [word.format(script=tmp_path / "program.py") for word in arguments]
    with fork_server.ForkServer() as unserved:
        for each in (python, unserved.variables[fork_server.PYTHON]):
            done = subprocess.run([each, *command], env={**job, **other}, capture_output=True, text=True)
            assert int(done.stdout) != server
    assert not os.path.exists(unserved.variables[fork_server.PYTHON])


def test_a_client_that_dies_as_it_asks_harms_nobody(served, tmp_path):
    python, job, server = served
    source = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({os.path.dirname(python) + '/socket'!r})"
    for said in ("", "; s.send(b'{')", "; s.send(b'{'); s.send(b'nonsense')"):
        subprocess.run([sys.executable, "-c", source + said], check=True)
    assert run(python, tmp_path / "program.py", PARENT, job).stdout == f"{server}\n"


@pytest.mark.stack
def test_the_server_ends_with_its_launcher(tmp_path):
    """Killed while the server still imports."""
    source = f"""
import os, sys
from cppo_verl.integration.cpu import fork_server
server = fork_server.ForkServer().__enter__()
server.start({{**os.environ, "VERL_PLATFORM": "cpu", "TMPDIR": {str(tmp_path)!r}}}, sys.stderr.buffer)
print(server._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert gone(int(done.stdout))


def test_a_folder_too_deep_for_a_socket_starts_no_server(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with fork_server.ForkServer() as server, (tmp_path / "log").open("wb") as output:
        server.start(os.environ, output)
        done = subprocess.run([server.variables[fork_server.PYTHON], "-c", "print(1)"], capture_output=True, text=True)
    assert done.stdout == "1\n"


def test_only_a_run_on_the_cpu_without_a_python_of_its_own_is_served(monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert fork_server.for_run({}) is not None
    assert fork_server.for_run({fork_server.HOOK: "mine.hook"}) is None
    monkeypatch.delenv("VERL_PLATFORM")
    assert fork_server.for_run({}) is None
    monkeypatch.setenv(fork_server.PYTHON, "/tmp/with a blank/python")
    ours = {"py_executable": "/bin/sh '/tmp/with a blank/python'"}
    for none in (None, {}, {"py_executable": None}, {"env_vars": {"A": "1"}, "working_dir": None}):
        assert fork_server.use_python(none) == dict(none or {}) | ours
    for given in ({"py_executable": "theirs", "env_vars": {"A": "1"}}, {"pip": ["numpy"]}, {"uv": ["numpy"]}):
        assert fork_server.use_python(given) == given
