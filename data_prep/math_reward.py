"""verl's own DAPO scorer behind bounds, for data sources math_dapo, aime24, aime25, aime26.

    reward.custom_reward_function.path=data_prep/math_reward.py
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.math_verify=true      # optional, needs the package math-verify

Without the option, this is verl.utils.reward_score.math_dapo on the end of the response. With it, an answer that the
scorer has read and found different is compared once more by math-verify, so that 10/2 counts as 5. math-verify
evaluates what it is given (9^9^9^9), and its own time limit is a signal, which threads cannot use; verl scores in
threads. So it runs in processes of its own, with limits of time and memory that end them from outside Python
(math_verify_server.py). An answer that runs into a limit keeps the scorer's verdict and is counted as ``timed_out``.

verl loads this file alone, by its path; it imports nothing of this package.
"""

import atexit
import importlib.util
import json
import queue
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from verl.utils.reward_score import math_dapo

TAIL = 4096
MAX_TRUTH = 300
INVALID = "[INVALID]"
SERVERS = 2
START_SECONDS = 120.0
GRACE_SECONDS = 5.0


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    math_verify: bool = False,
    time_limit: float = 2.0,
    memory_limit_mib: int = 1024,
    **kwargs: Any,
) -> dict[str, Any]:
    """Score the last `Answer:` of a response.

    Args:
        data_source, extra_info, kwargs: not used; verl passes them.
        solution_str: the decoded response; anything but text scores as an empty response.
        ground_truth: the answer as text, at most MAX_TRUTH characters.
        math_verify: compare answers that differ as text as mathematics too.
        time_limit: seconds a comparison by math-verify may take.
        memory_limit_mib: MiB of address space it may take.

    Returns:
        score (+1.0 or -1.0), acc (bool), pred (the answer read, as printable text) and timed_out (bool: math-verify ran
        into a limit; verl logs its mean for validation as `val-aux/<data_source>/timed_out/mean@N`).

    Raises:
        ValueError: the ground truth is longer than anything the scorer can find.
        ImportError: ``math_verify`` without the package.
    """
    truth = str(ground_truth)
    if len(truth) > MAX_TRUTH:
        raise ValueError(
            f"ground_truth has {len(truth)} characters: prepare the data with data_prep, which refuses them"
        )
    response = solution_str[-TAIL:] if isinstance(solution_str, str) else ""
    verdict: Any = math_dapo.compute_score(response, truth)  # a dict, though verl annotates a float
    correct, pred, timed_out = bool(verdict["acc"]), str(verdict["pred"]), False
    if math_verify and not correct and pred != INVALID and pred.strip():
        outcome = compare(truth, pred, time_limit, memory_limit_mib)
        correct, timed_out = outcome == "equal", outcome == "bounded"
    return {"score": 1.0 if correct else -1.0, "acc": correct, "pred": printable(pred), "timed_out": timed_out}


def printable(text: str) -> str:
    """Text that any log, JSON file or transport takes: control characters and lone surrogates become U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def compare(truth: str, pred: str, time_limit: float, memory_limit_mib: int) -> str:
    """math-verify's view of two answers: "equal", "different" or "bounded"; waits for a free server first."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(
            "reward.custom_reward_function.reward_kwargs.math_verify = true: the package math-verify is not installed; "
            "pip install math-verify, or leave the option out"
        )
    server = _idle.get()
    try:
        return server.ask(
            {"truth": truth, "pred": pred, "time_limit": time_limit, "memory_limit_mib": memory_limit_mib}
        )
    finally:
        _idle.put(server)


class Server:
    """A process of a script beside this file, started when first asked and again after it had to be killed."""

    def __init__(self, script: str = "math_verify_server.py") -> None:
        self.script = script
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> str:
        """Send one request, which has a ``time_limit`` in seconds; the line that comes back.

        A server that dies or does not answer in time is killed, and the answer is "bounded".
        """
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            return self._read_line(request["time_limit"] + GRACE_SECONDS)
        except (OSError, TimeoutError):
            self.stop()
            return "bounded"

    def stop(self) -> None:
        """Kill the process, if there is one."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.process is None or self.process.poll() is not None:
            self.stop()
            script = Path(__file__).with_name(self.script)
            self.process = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # poll sees what the pipe holds, not what a buffer does
            )
            self._read_line(START_SECONDS)
        return self.process

    def _read_line(self, seconds: float) -> str:
        """The server's next line; a TimeoutError after ``seconds`` without one, an OSError if it has ended."""
        assert self.process is not None and self.process.stdout is not None
        deadline, line, stream = time.monotonic() + seconds, b"", self.process.stdout
        poll = select.poll()
        poll.register(stream, select.POLLIN | select.POLLHUP)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"no answer in {seconds} s")
            byte = stream.read(1)
            if not byte:
                raise OSError("the server has ended")
            line += byte
        return line.decode().strip()


def _stop_all() -> None:
    while not _idle.empty():
        _idle.get_nowait().stop()


_idle: "queue.LifoQueue[Server]" = queue.LifoQueue()
for _ in range(SERVERS):
    _idle.put(Server())
atexit.register(_stop_all)
