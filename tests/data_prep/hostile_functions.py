"""What text that somebody evaluates could do; run in processes without rights."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

TRIAL = ("compute", ["1/2"], ["0.5", "colorsys"])


def prepare() -> None:
    """Nothing to build."""


def attempt(what: str, path: str) -> str:
    """`refused`, or what came of it."""
    tries = {
        "delete": lambda: os.unlink(path),
        "rename": lambda: os.rename(path, path + "2"),
        "truncate": lambda: os.truncate(path, 0),
        "create": lambda: Path(path + "2").touch(),
        "append": lambda: os.open(path, os.O_WRONLY | os.O_APPEND),
        "mode": lambda: os.chmod(path, 0),
        "folder": lambda: os.mkdir(path + "2"),
        "link": lambda: os.symlink(path, path + "2"),
        "fork": os.fork,
        "command": lambda: subprocess.run(["true"]),
        "thread": threading.Thread(target=print).start,
        "connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
        "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "signal": lambda: os.kill(os.getppid(), signal.SIGKILL),
        "trace": _trace,
        "owner": lambda: os.setuid(0),
        "clock": lambda: signal.setitimer(signal.ITIMER_PROF, 0),
        "deaf": lambda: signal.signal(signal.SIGPROF, signal.SIG_IGN),
        "read": lambda: Path(path).read_text(),
        "environment": lambda: Path("/proc/self/environ").read_text(),
    }
    try:
        return repr(tries[what]())
    except (PermissionError, signal.ItimerError):
        return "refused"
    except (OSError, RuntimeError) as error:
        return "refused" if "new thread" in str(error) else repr(error)


def compute(text: str) -> list[str]:
    import colorsys

    return [f"{float(Fraction(text)):g}", colorsys.__name__]


def come_to_nothing(how: str) -> Any:
    sys.setrecursionlimit(10**9)
    endless = iter(int, 1)
    ways = {
        "spin": lambda: [None for number in endless if number],
        "swell": lambda: len(bytearray(1 << 30)),
        "recurse": lambda: ways["recurse"](),
        "crash": lambda: ctypes.string_at(0),
        "shout": lambda: "x" * (1 << 22),
        "raise": lambda: Fraction("of its own"),
    }
    return ways[how]()


def _trace() -> None:
    if ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
