"""What stands in for Python where ``fork_server`` serves: ``fork_client.py SOCKET ARGUMENT...``.

It becomes a plain Python with the same arguments if nobody serves, and nothing more than Python's own library is
imported before that is known. Otherwise it stays beside the process that the server forked for it: it passes signals
on, and each ends with the other.
"""

import itertools
import json
import os
import re
import signal
import socket
import sys

SPAWNED = re.compile(
    r"from multiprocessing.spawn import spawn_main; spawn_main\(tracker_fd=(\d+), pipe_handle=(\d+)\)"
)  # what Python's multiprocessing has a new process run
LENGTH = 8  # bytes of a number on the socket, most significant first
MOST_FILES = 253  # that the kernel lets pass at once
HARMLESS = ("-B", "-u")  # the only options of Python's that the server may ignore


def main(path: str, arguments: list[str]) -> int:
    """Exit status of the forked process; 1 if it died before it could say one."""
    program = list(itertools.dropwhile(HARMLESS.__contains__, arguments))
    with socket.socket(socket.AF_UNIX) as connection:
        process = _fork(connection, path, program) if _is_served(program) else 0
        if not process:
            os.execv(sys.executable, [sys.executable, *arguments])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(process, number))
        status = connection.recv(1)
        connection.recv(1)  # nothing comes: until the process is gone
    return status[0] if status else 1


def _is_served(program: list[str]) -> bool:
    """A file of Python, or a process of multiprocessing's."""
    if program[0] == "-c":
        return SPAWNED.fullmatch(program[1]) is not None
    return not program[0].startswith("-")


def _fork(connection: socket.socket, path: str, program: list[str]) -> int:
    """The process that the server forked; 0 if it did not."""
    try:
        found = {int(name) for name in os.listdir("/proc/self/fd")} - {connection.fileno()}
        files = sorted(number for number in found if _is_open(number))  # without the one that listed them
        said = {"arguments": program, "environment": dict(os.environ), "folder": os.getcwd(), "numbers": files}
        data = json.dumps(said).encode()
        connection.connect(path)
        socket.send_fds(connection, [len(data).to_bytes(LENGTH, "big")], files)  # an OSError if there are too many
        connection.sendall(data)
        return int.from_bytes(connection.recv(LENGTH, socket.MSG_WAITALL), "big")
    except OSError:
        return 0


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
