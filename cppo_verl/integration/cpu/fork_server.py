"""Processes of a run that are forked from one which has imported torch, vLLM and verl already.

A start of verl is a chain of about ten processes, and on the CPU each would import them anew: most of the start. The
launcher starts this server beside the trainer, and ``python`` in the server's folder stands in for Python where Ray
starts a worker and where vLLM starts its engine. Behind it is ``fork_client``: it hands its arguments, environment and
open files to the server, whose child becomes that program. Where the server cannot serve, the client becomes a plain
Python. So nothing but time depends on the server.

Ray reads a job's variables at its own import. So the server imports Ray, and what imports Ray, in the environment of
the first worker; a process of another job gets a plain Python. So does one that Python would start differently.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Any, BinaryIO

from cppo_verl.integration import cpu
from cppo_verl.integration.cpu import fork_client
from cppo_verl.launch import exposure

WITHOUT_RAY = (  # imported while the trainer's driver imports its own
    "torch",
    "tensordict",
    "transformers.generation",
    "datasets",
    "peft",
    "vllm.entrypoints.openai.api_server",
)
WITH_RAY = (
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1",
    "verl.workers.engine_workers",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "verl.experimental.agent_loop",
    "verl.experimental.reward_loop",
    "cppo_verl.integration.trainer",
    "cppo_verl.integration.losses",
)
OF_A_JOB = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_AUTH_MODE")
OF_PYTHON = ("PYTHONHASHSEED",)  # read as Python starts
ANY_PYTHON = ("env_vars", "working_dir")  # of a runtime_env; the others may bring a Python, or packages for it
HOOK = "RAY_RUNTIME_ENV_HOOK"  # Ray's: a function that ray.init has complete the workers' environment
PYTHON = "CPPO_VERL_WORKER_PYTHON"
LOOK = 0.2  # seconds between looks for children that ended, and at whether the launcher lives
HIGH = 512  # from this number on a child keeps its own open files


class ForkServer:
    """A server and its folder, both gone at the end of the ``with`` block.

    Attributes:
        variables: for the run's environment, by which Ray starts its workers here.
    """

    def __enter__(self) -> "ForkServer":
        self._folder = tempfile.TemporaryDirectory(prefix="cppo-verl-")
        self._socket, self._python = (Path(self._folder.name, name) for name in ("socket", "python"))
        client = [sys.executable, "-I", "-S", fork_client.__file__, str(self._socket)]
        self._python.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
        self._python.chmod(0o700)
        self.variables = {HOOK: f"{__name__}.use_python", PYTHON: str(self._python)}
        self._process: subprocess.Popen | None = None
        return self

    def __exit__(self, *_) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._folder.cleanup()

    def start(self, environment: Mapping[str, str], output: BinaryIO) -> None:
        """Begin to import; clients wait meanwhile.

        Args:
            environment: of the server, and what ``/proc`` shows of the processes that it forks.
            output: takes what the imports say.
        """
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(self._socket))
            except OSError:
                return  # in a folder with too long a name for a socket; clients become plain Pythons
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno()), str(os.getpid()), str(self._python)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[listener.fileno()],
                env=dict(environment),
            )


def for_run(overrides: Sequence[str], environment: Mapping[str, str]) -> ForkServer | None:
    """A server for a run on the CPU that starts a Ray of its own on this machine; None for any other."""
    return (
        ForkServer() if cpu.enabled() and exposure.alone(overrides, environment) and HOOK not in environment else None
    )


def use_python(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ray's hook: the ``runtime_env`` of ray.init with the server's Python, where any Python of this one's would do."""
    given = dict(runtime_env or {})
    if any(value is not None for key, value in given.items() if key not in ANY_PYTHON):
        return given
    return given | {"py_executable": f"/bin/sh {shlex.quote(os.environ[PYTHON])}"}


@dataclass(frozen=True)
class Request:
    """What a client wants to be: Python's arguments, environment, folder, and open files by their numbers there."""

    connection: socket.socket
    files: list[int]
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    numbers: list[int]

    @classmethod
    def receive(cls, connection: socket.socket) -> "Request | None":
        """None if the client died as it asked."""
        data, files, _, _ = socket.recv_fds(connection, fork_client.LENGTH, fork_client.MOST_FILES)
        try:
            with connection.makefile("rb") as stream:
                said = json.loads(stream.read(int.from_bytes(data, "big")))
            return cls(connection, files, **said)
        except (OSError, ValueError):
            _close(connection, files)
            return None

    def has(self, values: Mapping[str, str | None]) -> bool:
        """Whether its environment has these values; None for a variable that is not set."""
        return all(self.environment.get(name) == value for name, value in values.items())

    def close(self) -> None:
        """In the server, which keeps nothing of it."""
        _close(self.connection, self.files)

    def become(self, python: str, ended: list[int]) -> None:
        """Run the program in this process, to its end; its status goes to ``ended``."""
        connection = socket.socket(fileno=_high(self.connection.detach()))
        connection.send(os.getpid().to_bytes(fork_client.LENGTH, "big"))
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        files = [_high(file) for file in self.files]
        for number, file in zip(self.numbers, files, strict=True):
            os.dup2(file, number)
            os.close(file)
        threads = os.environ.get("OMP_NUM_THREADS")
        self.take_environment()
        if self.environment.get("OMP_NUM_THREADS", threads) != threads:
            sys.modules["torch"].set_num_threads(int(self.environment["OMP_NUM_THREADS"]))
        sys.modules["numpy"].random.seed()  # else every process would draw the same
        if os.access(python, os.X_OK):
            multiprocessing.set_executable(python)
        os.chdir(self.folder)
        status = 1
        try:
            _run(self.arguments)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        finally:
            ended.append(status & 255)
            connection.send(bytes(ended))

    def take_environment(self) -> None:
        """The client's variables, and its PYTHONPATH in ``sys.path``.

        What is the same stays where it is: from there ``setproctitle`` finds the place of the process's title.
        """
        old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        for name in os.environ.keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment.items() - os.environ.items())
        new = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[1:] = new + [path for path in sys.path[1:] if path not in old]


def main(listener: socket.socket, launcher: int, python: str) -> None:
    """The server's process, and each of its children."""
    ended: list[int] = []
    atexit.register(_leave, ended)  # before any other, so it is called after them
    gc.disable()  # what is imported stays: looking for garbage in it costs time, and in a child the shared pages too
    cpu.settle()
    _import(WITHOUT_RAY)
    listener = socket.socket(fileno=_high(listener.detach()))
    request = _serve(listener, launcher)
    listener.close()
    gc.enable()
    request.become(python, ended)


def _serve(listener: socket.socket, launcher: int) -> Request:
    """Fork a child for each request, and end with the launcher; returns in the children alone."""
    imported, fixed = False, {name: os.environ.get(name) for name in OF_PYTHON}
    while True:
        asked = select.select([listener], [], [], LOOK)[0]
        if os.getppid() != launcher:
            sys.exit()
        while _reaped():
            pass
        request = Request.receive(listener.accept()[0]) if asked else None
        if request is None:
            continue
        if not imported and request.has(fixed):
            request.take_environment()
            _import(WITH_RAY)
            gc.freeze()
            imported, fixed = True, fixed | {name: os.environ.get(name) for name in OF_A_JOB}
        if request.has(fixed) and threading.active_count() == 1 and not os.fork():
            return request
        request.close()


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(ImportError):  # whoever needs it will say what is missing
            importlib.import_module(name)


def _reaped() -> int:
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def _run(arguments: Sequence[str]) -> None:
    program, *rest = arguments
    if program == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        tracker, pipe = fork_client.SPAWNED.findall(rest[0])[0]
        spawn.spawn_main(tracker_fd=int(tracker), pipe_handle=int(pipe))
    else:
        sys.argv, sys.path[0] = list(arguments), str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")


def _leave(ended: Sequence[int]) -> None:
    """Spare a child from taking apart what it shares with the server."""
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


def _high(file: int) -> int:
    """The open file under a number that no client asks for."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(file)
    return moved


def _close(connection: socket.socket, files: Sequence[int]) -> None:
    connection.close()
    for file in files:
        os.close(file)


def _end_with(connection: socket.socket) -> None:
    connection.recv(1)  # nothing comes: until the client is gone
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
