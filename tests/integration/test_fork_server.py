"""The server that forks a run's processes on the CPU: what it makes of them, and what holds where it cannot serve."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cppo_verl.integration.cpu import fork_server

ABOUT = """
import json, os, sys, threading, numpy, torch
from ray._raylet import Config
print(json.dumps({
    "arguments": sys.argv, "path": sys.path[:2], "folder": os.getcwd(), "environment": dict(os.environ),
    "main": sys.modules["__main__"].__file__, "name": __name__, "drawn": numpy.random.random(),
    "threads": torch.get_num_threads(), "others": [t.name for t in threading.enumerate() if not t.daemon],
    "vllm": "vllm.v1.engine.core" in sys.modules, "ray": Config.kill_worker_timeout_milliseconds(),
    "parent": os.getppid()}))
"""
SPAWN = """
import multiprocessing, sys

def square(number, answer):
    answer.put((number * number, "vllm.v1.engine.core" in sys.modules, multiprocessing.parent_process().pid))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=square, args=(7, answer))
    child.start()
    print(*answer.get(timeout=60), __import__("os").getpid())
    child.join()
    print(child.exitcode)
"""
WAIT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(os.getpid(), flush=True)
time.sleep(600)
"""
JOB = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": str(os.getpid()), "RAY_kill_worker_timeout_milliseconds": "4321"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server's Python, and the environment of the job that it serves."""
    console = tmp_path_factory.mktemp("server") / "console.log"
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    with fork_server.ForkServer() as server:
        with console.open("wb") as output:
            server.start(environment, output)
        python = server.variables[fork_server.PYTHON]
        job = {**environment, **JOB}
        first = _run(python, console.with_name("first.py"), "import os; print(os.getppid())", job)
        assert first.returncode == 0, console.read_text() + first.stderr
        assert psutil.Process(int(first.stdout)).cmdline()[2] == fork_server.__name__  # it is no plain Python
        yield python, job, int(first.stdout)


def _run(python: str, script: Path, source: str, environment, *arguments: str, **options):
    script.write_text(source)
    command = [python, "-B", str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


def _about(python: str, script, environment, *arguments: str, **options) -> dict:
    done = _run(python, script, ABOUT, environment, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.stack
def test_a_fork_is_the_program_that_was_asked_for(served, tmp_path):
    python, job, server = served
    (tmp_path / "here").mkdir()
    values = {**job, "PYTHONPATH": "/of/the/client", "OMP_NUM_THREADS": "2", "ONLY_HERE": "1"}
    del values["VERL_PLATFORM"]
    script = tmp_path / "program.py"
    about = _about(python, script, values, "-u", "two words", cwd=tmp_path / "here")
    own = ("PWD", "OLDPWD", "_")  # the shell's
    assert {name: value for name, value in about["environment"].items() if name not in own} == {
        name: value for name, value in values.items() if name not in own
    }
    assert about["arguments"] == [str(script), "-u", "two words"]
    assert about["path"] == [str(tmp_path), "/of/the/client"]
    assert (about["folder"], about["main"], about["name"]) == (str(tmp_path / "here"), str(script), "__main__")
    assert (about["threads"], about["others"], about["parent"]) == (2, ["MainThread"], server)
    assert about["vllm"]  # which the program did not import
    assert about["ray"] == 4321  # Ray was not imported before the job's environment was there
    assert about["drawn"] != _about(python, script, job)["drawn"]


@pytest.mark.stack
def test_output_and_status_come_back(served, tmp_path):
    python, job, _ = served
    source = "import sys; print('out'); print('err', file=sys.stderr); print(sys.stdin.read()); sys.exit(3)"
    done = _run(python, tmp_path / "ends.py", source, job, input="in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\nin\n", "err\n")
    source = "import atexit, threading, time\natexit.register(print, 'at exit')\n"
    source += "threading.Thread(target=lambda: (time.sleep(0.5), print('thread'))).start()"
    assert _run(python, tmp_path / "waits.py", source, job).stdout == "thread\nat exit\n"
    failed = _run(python, tmp_path / "fails.py", "raise KeyError('lost')", job)
    assert failed.returncode == 1
    assert failed.stderr.endswith("KeyError: 'lost'\n")


@pytest.mark.stack
def test_what_a_fork_spawns_is_forked_too(served, tmp_path):
    python, job, _ = served
    done = _run(python, tmp_path / "spawns.py", SPAWN, job)
    assert done.returncode == 0, done.stderr
    told, status = done.stdout.splitlines()
    assert told.split()[:2] == ["49", "True"]
    assert told.split()[2] == told.split()[3]  # it knows who its parent is
    assert status == "0"


@pytest.mark.stack
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 7), (signal.SIGKILL, -9)])
def test_a_signal_to_the_client_ends_the_fork(served, tmp_path, number, status):
    client, fork = _waiting(served, tmp_path)
    client.send_signal(number)
    assert client.wait(timeout=20) == status
    assert _gone(fork)


@pytest.mark.stack
def test_the_client_ends_with_the_fork(served, tmp_path):
    client, fork = _waiting(served, tmp_path)
    os.kill(fork, signal.SIGKILL)
    assert client.wait(timeout=20) == 1
    assert _gone(fork)  # nor is it left as a zombie


@pytest.mark.stack
@pytest.mark.parametrize("other", [{"RAY_JOB_ID": "02000000"}, {"RAY_RAYLET_PID": "1"}, {"PYTHONHASHSEED": "7"}])
def test_what_was_imported_for_others_gets_a_plain_python(served, tmp_path, other):
    """Another job, and a Python with another order of its sets."""
    python, job, server = served
    about = _about(python, tmp_path / "program.py", {**job, **other})
    assert (about["vllm"], about["parent"] != server) == (False, True)


@pytest.mark.stack
@pytest.mark.parametrize("options, told", [(["-I"], "1 False\n"), (["-c"], "0 False\n")])
def test_other_ways_to_start_python_get_a_plain_one(served, tmp_path, options, told):
    """Options that change Python, and code on the command line."""
    python, job, _ = served
    source = "import sys; print(sys.flags.isolated, 'vllm' in sys.modules)"
    script = tmp_path / "program.py"
    script.write_text(source)
    command = [python, *options, source if "-c" in options else str(script)]
    assert subprocess.run(command, env=job, capture_output=True, text=True).stdout == told


@pytest.mark.stack
def test_a_client_that_dies_as_it_asks_harms_nobody(served, tmp_path):
    python, job, server = served
    source = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({os.path.dirname(python) + '/socket'!r})"
    for said in ("", "; s.send(bytes(7) + b'\\x09')", "; s.send(bytes(7) + b'\\x09{'); s.send(b'nonsense')"):
        subprocess.run([sys.executable, "-c", source + said], check=True)
    assert _about(python, tmp_path / "program.py", job)["parent"] == server


def test_without_a_server_it_is_a_plain_python(tmp_path):
    with fork_server.ForkServer() as server:
        python = server.variables[fork_server.PYTHON]
        source = "import sys; print(sys.argv, sys.prefix, sys.flags.dont_write_bytecode)"
        plain = subprocess.run([sys.executable, "-B", "-c", source, "x"], capture_output=True, text=True)
        assert plain.stdout.endswith(" 1\n")
        assert subprocess.run([python, "-B", "-c", source, "x"], capture_output=True, text=True).stdout == plain.stdout
    assert not os.path.exists(python)


def test_a_folder_too_deep_for_a_socket_starts_no_server(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with fork_server.ForkServer() as server, (tmp_path / "log").open("wb") as output:
        server.start(os.environ, output)
        done = subprocess.run([server.variables[fork_server.PYTHON], "-c", "print(1)"], capture_output=True, text=True)
    assert done.stdout == "1\n"


@pytest.mark.stack
def test_the_server_ends_with_its_launcher(tmp_path):
    """Killed while the server still imports."""
    source = (
        "import os, sys\nfrom cppo_verl.integration.cpu import fork_server\n"
        "server = fork_server.ForkServer().__enter__()\nserver.start(os.environ, sys.stderr.buffer)\n"
        "print(server._process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    values = {**os.environ, "VERL_PLATFORM": "cpu", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", source], env=values, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -9
    assert _gone(int(done.stdout), within=90)


@pytest.mark.parametrize(
    "overrides, environment, serves",
    [
        ([], {}, True),
        (["trainer.nnodes=2"], {}, False),
        (["+ray_kwargs.ray_init.address=10.0.0.1:6379"], {}, False),
        ([], {"RAY_ADDRESS": "auto"}, False),
        ([], {"RAY_ADDRESS": "local"}, True),
        ([], {fork_server.HOOK: "mine.hook"}, False),
    ],
)
def test_only_a_run_with_a_ray_of_its_own_is_served(monkeypatch, tmp_path, overrides, environment, serves):
    environment = {"RAY_TMPDIR": str(tmp_path), **environment}  # without a cluster of this machine's
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert (fork_server.for_run(overrides, environment) is not None) == serves
    monkeypatch.delenv("VERL_PLATFORM")
    assert fork_server.for_run(overrides, environment) is None


def test_the_users_own_python_stays(monkeypatch):
    monkeypatch.setenv(fork_server.PYTHON, "/tmp/with a blank/python")
    verls = {"env_vars": {"A": "1"}, "working_dir": None}
    told = fork_server.use_python(verls | {"py_executable": None})
    assert told == verls | fork_server.use_python(None)
    for none in (None, {}, {"py_executable": None}):
        assert fork_server.use_python(none) == {"py_executable": "/bin/sh '/tmp/with a blank/python'"}
    for given in ({"py_executable": "theirs", "env_vars": {"A": "1"}}, {"pip": ["numpy"]}, {"uv": ["numpy"]}):
        assert fork_server.use_python(given) == given


def _waiting(served, folder: Path) -> tuple[subprocess.Popen, int]:
    python, job, _ = served
    (folder / "waits.py").write_text(WAIT)
    client = subprocess.Popen([python, str(folder / "waits.py")], env=job, stdout=subprocess.PIPE, text=True)
    return client, int(client.stdout.readline())


def _gone(pid: int, within: float = 20.0) -> bool:
    deadline = time.monotonic() + within
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not psutil.pid_exists(pid)
