"""Runs functions on text that a model wrote, each call in a process of its own that has no rights.

    judges = Sandbox("data_prep.math_judge")
    verdict = judges.call("are_equal", ["1/2", "0.5"], seconds=2.0, memory_mib=512)

A worker imports the module once, calls its ``prepare``, tries its ``TRIAL`` and forks for every call; the fork gives up
its rights (confinement.py), computes, and sends its result back as JSON. It is killed from outside when it runs out of
time. If a worker cannot start, or its forks keep a right or cannot compute, that is an error and not a verdict.
"""

import atexit
import importlib
import json
import os
import queue
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType
from typing import Any

from data_prep import confinement

START_SECONDS = 300.0
LONGEST = 1 << 16  # bytes of a result
START = "import sys; sys.path.insert(0, {root!r}); from data_prep import sandbox; sandbox.serve({pipe}, {module!r})"
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads would not survive the fork


class SandboxError(RuntimeError):
    """No process without rights could be had, so that nothing was judged."""


class Bounded(Exception):
    """A call ran out of time or memory, or crashed."""


class Sandbox:
    """Up to ``workers`` processes that run the functions of ``module``, started when needed. For many threads."""

    def __init__(self, module: str, workers: int = 2) -> None:
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(_Worker(module))
        atexit.register(self.stop)

    def call(self, function: str, arguments: list[Any], seconds: float, memory_mib: int) -> Any:
        """The result of ``function(*arguments)``; both are what JSON can hold.

        ``seconds`` are of processor time, MiB of address space beyond what the worker has.

        Raises:
            Bounded: the call came to no result. SandboxError: no process to run it in.
        """
        worker = self._idle.get()
        try:
            said = worker.ask(function, arguments, seconds, memory_mib)
        finally:
            self._idle.put(worker)
        if not said:
            raise Bounded(f"{function} ran into its limits")
        return json.loads(said)

    def stop(self) -> None:
        """Kill the idle workers; a later call starts new ones."""
        for worker in list(self._idle.queue):
            worker.stop()


class _Worker:
    """One process, started when first asked and again after it has ended."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def ask(self, *request: Any) -> bytes:
        """What the worker answers to function, arguments, seconds and memory_mib; nothing where it did not."""
        if self.running is None or self.running[0].poll() is not None:
            self.running = self._start()
        connection = self.running[1]
        try:
            connection.send_bytes(json.dumps(request).encode())
            if connection.poll(_patience(request[2]) + START_SECONDS):
                return connection.recv_bytes()
        except (OSError, EOFError):  # killed from outside, by want of memory as a rule
            pass
        self.stop()
        return b""

    def stop(self) -> None:
        """Kill the process, if there is one."""
        if self.running is not None:
            process, connection = self.running
            process.kill()
            process.wait()
            connection.close()
            self.running = None

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        """Start the process and wait until it is ready; a SandboxError where it does not become so."""
        self.stop()
        ours, theirs = Pipe()
        root = str(Path(__file__).resolve().parents[1])
        code = START.format(root=root, pipe=theirs.fileno(), module=self.module)
        quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | QUIET, pass_fds=[theirs.fileno()], **quiet
        )
        theirs.close()
        self.running = process, ours
        try:
            fault = ours.recv_bytes().decode() if ours.poll(START_SECONDS) else "it was not ready in time"
        except (OSError, EOFError):
            fault = f"it ended with status {process.wait()}"
        if not fault:
            return self.running
        self.stop()
        raise SandboxError(
            f"the process without rights that judges answers ({self.module}) did not start: {fault}; it needs "
            "Linux with seccomp, and the packages of requirements/. No answer is judged without it"
        )


def serve(descriptor: int, module_name: str) -> None:
    """A worker's life: import, see that forks have no rights and compute, answer until the other side is gone."""
    connection = Connection(descriptor)
    try:
        confinement.filter_program()
        module = importlib.import_module(module_name)
        module.prepare()
        function, arguments, expected = module.TRIAL
        rights = _run_alone(confinement, "remaining_rights", [], 60.0, 1024)
        said = _run_alone(module, function, arguments, 60.0, 1024)
        fault = "" if said == json.dumps(expected).encode() else f"{function}{arguments} gave {said!r} without rights"
        if rights != b"[]":
            fault = f"what a process here can still do: {rights.decode() or 'unknown'}"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    connection.send_bytes(fault.encode())
    while not fault:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(_run_alone(module, *request))


def _run_alone(module: ModuleType, function: str, arguments: list[Any], seconds: float, memory_mib: int) -> bytes:
    """The result as JSON, from a fork; nothing where there is none in time."""
    reading, writing = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            os.closerange(3, writing.fileno())
            os.closerange(writing.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
            confinement.give_up_rights(seconds, memory_mib)
            result = getattr(module, function)(*arguments)
            writing.send_bytes(json.dumps(result).encode())
        finally:
            os._exit(0)
    writing.close()
    try:
        return reading.recv_bytes(LONGEST) if reading.poll(_patience(seconds)) else b""
    except (OSError, EOFError):
        return b""
    finally:
        reading.close()
        os.kill(child, 9)
        os.waitpid(child, 0)


def _patience(seconds: float) -> float:
    """Seconds on the clock that a call may take, which is limited by processor time."""
    return 10 * seconds + 10
