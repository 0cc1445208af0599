"""Processes of a CPU run that are forked from one which has imported torch, vLLM and verl already: only to save time.

The launcher starts this server beside the trainer, and ``python`` in the server's folder stands in for Python where Ray
starts a worker and where vLLM starts its engine. Behind it is the client below: it hands its arguments, environment and
open files to the server, whose child becomes that program. The client stays beside it, passes signals on, and each ends
with the other. Where the server cannot serve, the client becomes a plain Python: with other options of Python's, and in
another Ray job, for Ray reads a job's variables at its own import and so is imported in those of the first worker.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# imported while the trainer's driver imports its own
WITHOUT_RAY = ["torch", "tensordict", "transformers.generation", "datasets", "peft"]
WITHOUT_RAY += ["vllm.entrypoints.openai.api_server"]
WITH_RAY = ["vllm.v1.engine.core", "vllm.v1.worker.cpu_worker", "verl.trainer.main_ppo", "verl.workers.engine_workers"]
WITH_RAY += ["verl.workers.rollout.vllm_rollout.vllm_async_server", "verl.experimental.agent_loop"]
WITH_RAY += ["verl.experimental.reward_loop", "cppo_verl.integration.trainer"]
OF_PYTHON = ("PYTHONHASHSEED",)  # read as Python starts
OF_A_JOB = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_AUTH_MODE")
ANY_PYTHON = ("env_vars", "working_dir")  # of a runtime_env; the others may bring a Python, or packages for it
HOOK = "RAY_RUNTIME_ENV_HOOK"  # Ray's: a function that ray.init has complete the workers' environment
PYTHON = "CPPO_VERL_WORKER_PYTHON"
LOOK = 0.2  # seconds between looks for children that ended, and at whether the launcher lives
HIGH = 512  # from this number on a child keeps its own open files
PID_BYTES = 8  # of the answer to a client, most significant first; 0 is no process
MOST_FILES = 253  # that the kernel lets pass at once
HARMLESS = ("-B", "-u")  # the only options of Python's that the server may ignore
SPAWNED = re.compile(
    r"from multiprocessing.spawn import spawn_main; spawn_main\(tracker_fd=(\d+), pipe_handle=(\d+)\)"
)  # what Python's multiprocessing has a new process run

# ---- the launcher's side


class ForkServer:
    """A server and its folder, both gone at the end of the ``with`` block.

    Attributes:
        variables: for the run's environment, by which Ray starts its workers here.
    """

    def __enter__(self) -> "ForkServer":
        self._folder = tempfile.TemporaryDirectory(prefix="cppo-verl-")
        self._socket, self._python = (Path(self._folder.name, name) for name in ("socket", "python"))
        client = [sys.executable, "-I", "-S", __file__, "--client", str(self._socket)]
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

    def start(self, environment, output) -> None:
        """Begin to import; clients wait meanwhile.

        Args:
            environment: of the server, and what ``/proc`` shows of the processes that it forks.
            output: a binary file that takes what the imports say.
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


def for_run(environment) -> ForkServer | None:
    """A server for a run on the CPU that starts a Ray of its own on this machine, where the user has no such hook."""
    from cppo_verl.integration import cpu

    return ForkServer() if cpu.enabled() and HOOK not in environment else None


def use_python(runtime_env) -> dict:
    """Ray's hook: the ``runtime_env`` of ray.init with the server's Python, where any Python of this one's would do."""
    given = dict(runtime_env or {})
    if any(value is not None for key, value in given.items() if key not in ANY_PYTHON):
        return given
    return given | {"py_executable": f"/bin/sh {shlex.quote(os.environ[PYTHON])}"}


# ---- the client: what stands in for Python; nothing but Python's own library is imported there


def client(path: str, arguments: list[str]) -> int:
    """Exit status of the forked process; 1 if it died before it could say one."""
    program = arguments[next(at for at, word in enumerate(arguments) if word not in HARMLESS) :]
    servable = SPAWNED.fullmatch(program[1]) if program[0] == "-c" else not program[0].startswith("-")
    with socket.socket(socket.AF_UNIX) as connection:
        process = _asked_for(connection, path, program) if servable else 0
        if not process:
            os.execv(sys.executable, [sys.executable, *arguments])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(process, number))
        status = connection.recv(1)
        connection.recv(1)  # nothing comes: until the process is gone
    return status[0] if status else 1


def _asked_for(connection: socket.socket, path: str, program: list[str]) -> int:
    """The process that the server forked; 0 if it did not."""
    # the one that lists them is closed by now
    files = [int(number) for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]
    files.remove(connection.fileno())
    said = {"arguments": program, "environment": dict(os.environ), "folder": os.getcwd(), "numbers": files}
    try:
        connection.connect(path)
        socket.send_fds(connection, [b"{"], files)  # an OSError if there are too many
        connection.sendall(json.dumps(said).encode()[1:] + b"\n")
        return int.from_bytes(connection.recv(PID_BYTES, socket.MSG_WAITALL), "big")
    except OSError:
        return 0


# ---- the server's process, and each of its children

_ended: list[int] = []  # a child's exit status, once its program has come to its end


def serve(listener: socket.socket, launcher: int, python: str) -> None:
    """Fork a child for each request until the launcher is gone; the children come out of here as their programs."""
    from cppo_verl.integration import cpu

    atexit.register(_leave)  # before any other, so it is called after them
    gc.disable()  # what is imported stays: looking for garbage in it costs time, and in a child the shared pages too
    cpu.settle()
    _import(WITHOUT_RAY)
    listener = socket.socket(fileno=_high(listener.detach()))
    listener.settimeout(LOOK)
    imported, fixed = False, {name: os.environ.get(name) for name in OF_PYTHON}
    while os.getppid() == launcher:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            connection = listener.accept()[0]
        except TimeoutError:
            continue
        files, said = _request(connection)
        if said and not imported and _has(said["environment"], fixed):
            _take_environment(said["environment"])
            _import(WITH_RAY)
            gc.freeze()
            imported, fixed = True, fixed | {name: os.environ.get(name) for name in OF_A_JOB}
        servable = said and _has(said["environment"], fixed) and threading.active_count() == 1
        _draw_on()
        if servable and not os.fork():
            listener.close()
            gc.enable()
            _become(said, connection, files, python)
            return
        for file in [connection.detach(), *files]:
            os.close(file)


def _draw_on() -> None:
    """Leave each child a stretch of Ray's random numbers: two that draw the same name objects alike, and one dies."""
    if raylet := sys.modules.get("ray._raylet"):
        for _ in range(1000):
            raylet.ActorClassID.from_random()


def _request(connection: socket.socket) -> tuple[list[int], dict]:
    """A client's open files, and what it said; nothing of one that died as it asked."""
    files: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        first, files, _, _ = socket.recv_fds(connection, 1, MOST_FILES)
        with connection.makefile("rb") as stream:
            return files, json.loads(first + stream.readline())
    return files, {}


def _has(environment: dict[str, str], values: dict[str, str | None]) -> bool:
    return all(environment.get(name) == value for name, value in values.items())


def _become(said: dict, connection: socket.socket, files: list[int], python: str) -> None:
    """Run the client's program in this process; its status goes to the client."""
    connection = socket.socket(fileno=_high(connection.detach()))
    connection.send(os.getpid().to_bytes(PID_BYTES, "big"))
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    for number, file in zip(said["numbers"], [_high(file) for file in files], strict=True):
        os.dup2(file, number)
        os.close(file)
    threads = os.environ.get("OMP_NUM_THREADS")
    _take_environment(said["environment"])
    if os.environ.get("OMP_NUM_THREADS", threads) != threads:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.modules["numpy"].random.seed()  # else every process would draw the same
    os.chdir(said["folder"])
    status = 1
    try:
        _run(said["arguments"], python)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        _ended.append(status & 255)
        connection.send(bytes(_ended))


def _take_environment(environment: dict[str, str]) -> None:
    """Have these variables, and their PYTHONPATH in ``sys.path``.

    What is the same stays where it is: from there ``setproctitle`` finds the place of the process's title.
    """
    old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment.items() - os.environ.items())
    new = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[1:] = new + [path for path in sys.path[1:] if path not in old]


def _run(arguments: list[str], python: str) -> None:
    import multiprocessing
    import runpy
    from multiprocessing import spawn

    if os.access(python, os.X_OK):
        multiprocessing.set_executable(python)
    program, *rest = arguments
    if program == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        tracker, pipe = SPAWNED.findall(rest[0])[0]
        spawn.spawn_main(tracker_fd=int(tracker), pipe_handle=int(pipe))
    else:
        sys.argv, sys.path[0] = list(arguments), str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")


def _leave() -> None:
    """Spare a child from taking apart what it shares with the server."""
    if _ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_ended[0])


def _import(modules: list[str]) -> None:
    for name in modules:
        with contextlib.suppress(ImportError):  # whoever needs it will say what is missing
            importlib.import_module(name)


def _high(file: int) -> int:
    """The open file under a number that no client asks for."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH)
    os.close(file)
    return moved


def _end_with(connection: socket.socket) -> None:
    connection.recv(1)  # nothing comes: until the client is gone
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "--client":
        sys.exit(client(sys.argv[2], sys.argv[3:]))
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
