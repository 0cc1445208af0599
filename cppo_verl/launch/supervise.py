"""Start verl's trainer as a child, watch it, and leave nothing of it behind.

verl hangs when a rollout or training worker dies; here that becomes an error with the worker's own last words. Every
process of a run carries the run directory in its environment, by which leftovers are found, whoever their parent is.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from cppo_verl.errors import UserError

MARKER = "CPPO_VERL_RUN_DIR"
# Without one of these a run cannot go on; Ray names its processes after the actor class.
ACTORS = ("WorkerDict", "TaskRunnerV1", "vLLMHttpServer", "TopKHttpServer", "AgentLoopWorker", "TopKAgentLoopWorker")
SERVICES = ("SeededAgentLoopWorker", "RewardLoopWorker", "TransferQueueController", "SimpleStorageUnit")
ESSENTIAL = ("VLLM::EngineCore", *(f"ray::{name}" for name in (*ACTORS, *SERVICES)))
GRACE = 20.0  # seconds between the loss of an essential process and the verdict that the run is dead
FAREWELL = 300.0  # the same after the last step, when processes go one by one; long on a busy machine
GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


class RunFailed(UserError):
    """The training run ended without reaching its last step; the message says what is known of the cause."""


class AlreadyRunning(UserError):
    """Another launcher holds this run directory."""


class Watch:
    """What was seen of a run: ``essential`` processes by pid, when one was first missing, shared memory it had open."""

    def __init__(self) -> None:
        self.essential: dict[int, str] = {}
        self.segments: set[str] = set()
        self.lost_since: float | None = None

    def look(self, run_dir: Path) -> str:
        """Update from the live processes; names of essential processes that are gone, "" for none."""
        alive = {process.pid: process for process in processes_of(run_dir)}
        for pid, process in alive.items():
            name = title(process)
            if name.startswith(ESSENTIAL) and not _is_fork(process, name):
                self.essential[pid] = name
            self.segments |= _shared_memory(pid)
        lost = [f"{name} (pid {pid})" for pid, name in self.essential.items() if pid not in alive]
        self.lost_since = (self.lost_since or time.monotonic()) if lost else None
        return ", ".join(lost)


def run(
    command: Sequence[str],
    run_dir: Path,
    console: Path,
    environment: Mapping[str, str],
    on_tick: Callable[[], None] = lambda: None,
    stall_timeout: float = 1800.0,
    tick: float = 1.0,
    before: Callable[[], None] = lambda: None,
    what: str = "the trainer",
    patience: float = 5.0,
    ended: Callable[[], bool] = lambda: False,
) -> None:
    """Run ``command`` to its end with its output in ``console``; afterwards no process or shared memory of it is left.

    Args:
        environment: added to this process's own.
        on_tick: called about every ``tick`` seconds.
        stall_timeout: seconds without a byte of output after which the run counts as hung.
        before: called once the directory is held and nothing of an earlier start is left.
        what: name of the command in errors.
        patience: seconds that processes get to end by themselves when the command is given up.
        ended: whether the last step is done, after which processes may go before the command does.

    Raises:
        AlreadyRunning: another launcher holds ``run_dir``.
        RunFailed: non-zero exit, a lost worker, or a stall.
    """
    run_dir = run_dir.resolve()
    with lock(run_dir):
        end_processes(run_dir)  # what a killed launcher may have left
        before()
        watch = Watch()
        try:
            with console.open("ab") as output:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **environment, MARKER: str(run_dir)},
                )
                size, grown = -1, time.monotonic()
                while child.poll() is None:
                    time.sleep(tick)
                    on_tick()
                    lost, now = watch.look(run_dir), time.monotonic()
                    missing = now - (watch.lost_since or now)
                    if missing > (FAREWELL if ended() else GRACE) and child.poll() is None:
                        raise RunFailed(f"{lost} died and the trainer waits for it forever.\n{last_words(console)}")
                    if size != (size := os.fstat(output.fileno()).st_size):  # also of a log that somebody deleted
                        grown = now
                    elif now - grown > stall_timeout:
                        raise RunFailed(f"no output for {stall_timeout:.0f} s; the run hangs.\n{last_words(console)}")
            on_tick()
            if status := child.returncode:
                how = f"signal {-status}" if status < 0 else f"exit status {status}"
                raise RunFailed(f"{what} ended with {how}.\n{last_words(console)}")
        finally:
            watch.look(run_dir)
            end_processes(run_dir, patience)
            for segment in watch.segments:
                Path(segment).unlink(missing_ok=True)


def processes_of(run_dir: Path) -> Iterator[psutil.Process]:
    """Live processes of the run, without this one."""
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get(MARKER) == str(run_dir)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except GONE:
            continue


def end_processes(run_dir: Path, patience: float = 5.0) -> None:
    """Terminate the run's processes, then kill what remains after ``patience`` seconds."""
    for send in (psutil.Process.terminate, psutil.Process.kill):
        remaining = list(processes_of(run_dir))
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                send(process)
        psutil.wait_procs(remaining, timeout=patience)


def last_words(console: Path, lines: int = 25) -> str:
    """The last error in the console log, or its last lines, and where the whole of it lies."""
    text: list[str] = []
    with contextlib.suppress(FileNotFoundError), console.open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - 200_000))
        text = log.read().decode("utf-8", "replace").splitlines()
    told = [("Error" in line and "Warning" not in line) or line.startswith("Exception:") for line in text]
    end = max((place for place, error in enumerate(told) if error), default=len(text)) + 1
    return "\n".join([*text[max(0, end - lines) : end], f"(whole log: {console})"])


def raise_on_terminate() -> None:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that the clean-up runs; under nohup, SIGHUP stays ignored."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


@contextlib.contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Holds a run directory; AlreadyRunning where another launcher does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"{run_dir} is in use by another run; wait for it or choose another") from None
        yield


def title(process: psutil.Process | None) -> str:
    """A process's command line, or the title it gave itself; empty when it is gone."""
    try:
        return " ".join(" ".join(process.cmdline()).split()) if process else ""  # titles are padded with blanks
    except GONE:
        return ""


def _is_fork(process: psutil.Process, name: str) -> bool:
    """A helper that an essential process forked and that kept its title, such as those of ``datasets``' map."""
    try:
        return title(process.parent()) == name
    except psutil.NoSuchProcess:
        return True


def _shared_memory(pid: int) -> set[str]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_bytes() if sys.platform == "linux" else b""
    except OSError:
        return set()
    names = {line[line.index(b"/dev/shm/") :] for line in maps.splitlines() if b" /dev/shm/" in line}
    return {os.fsdecode(name) for name in names if not name.endswith(b"(deleted)")}
