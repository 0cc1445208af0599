"""A process gives up its rights: no new files, no network, no other process, bounded time and memory, root or not.

Linux only. A seccomp filter lets through what computing needs and answers every other system call with "not permitted";
it needs no privileges and cannot be taken off. Files can be opened for reading only, because libraries import late, and
with Landlock (Linux 5.13) only those of Python itself and the system's libraries.
"""

import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

# Numbers of the system calls that computing and reading need, by machine, and the machine's name in the kernel's audit.
ALLOWED = {
    "x86_64": (0xC000003E, "read=0 write=1 close=3 stat=4 fstat=5 lstat=6 lseek=8 mmap=9 mprotect=10 munmap=11 brk=12"
               " rt_sigreturn=15 pread64=17 access=21 sched_yield=24 mremap=25 madvise=28 getpid=39 exit=60 fcntl=72"
               " getcwd=79 readlink=89 futex=202 getdents64=217 clock_gettime=228 exit_group=231 newfstatat=262"
               " readlinkat=267 getrandom=318 openat=257"),
    "aarch64": (0xC00000B7, "read=63 write=64 close=57 fstat=80 lseek=62 mmap=222 mprotect=226 munmap=215 brk=214"
                " rt_sigreturn=139 pread64=67 faccessat=48 sched_yield=124 mremap=216 madvise=233 getpid=172 exit=93"
                " fcntl=25 getcwd=17 futex=98 getdents64=61 clock_gettime=113 exit_group=94 newfstatat=79"
                " readlinkat=78 getrandom=278 openat=56"),
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
SET_NO_NEW_PRIVILEGES, SET_SECCOMP, SET_DEATH_SIGNAL, FILTER = 38, 22, 1, 2  # of prctl
LOAD, JUMP_IF_EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06  # instructions of the kernel's filter machine
NUMBER_AT, MACHINE_AT, OPEN_FLAGS_AT = 0, 4, 32  # offsets in what it is given
PERMIT, REFUSE = 0x7FFF0000, 0x00050000 | 1  # 1: EPERM
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock
READ_FILE, READ_FOLDER, BENEATH = 1 << 2, 1 << 3, 1

_libc = ctypes.CDLL(None, use_errno=True)


class ConfinementError(RuntimeError):
    """This system cannot take a process's rights, or has not."""


def give_up_rights(seconds: float, memory_mib: int) -> None:
    """Refuse this process all rights, ``memory_mib`` beyond what it has, and more than ``seconds`` of processor time.

    Raises:
        ConfinementError: no seccomp on this system.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # the filter keeps it from being set anew
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: held + (memory_mib << 20), resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    _prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    _prctl(SET_NO_NEW_PRIVILEGES, 1)
    _restrict_reading()
    program = filter_program()
    code = ctypes.create_string_buffer(program, len(program))
    packed = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    if not _prctl(SET_SECCOMP, FILTER, ctypes.create_string_buffer(packed)):
        raise ConfinementError("the kernel takes no seccomp filter")


def remaining_rights() -> list[str]:
    """What a process can still do that it should not, called in one after ``give_up_rights``."""
    tries: dict[str, Callable[[], object]] = {
        "create a file": lambda: os.open("confinement", os.O_WRONLY | os.O_CREAT),
        "delete a file": lambda: os.unlink("/confinement/nothing"),
        "open a socket": socket.socket,
        "start a process": os.fork,
        "send a signal": lambda: os.kill(os.getppid(), 0),
    }
    rights = []
    for name, attempt in tries.items():
        try:
            attempt()
        except PermissionError:
            continue
        except OSError:  # it failed, and not for want of the right
            pass
        rights.append(name)
    return rights


def filter_program() -> bytes:
    """The filter: the calls of ALLOWED, openat without writing, nothing on another machine's numbers.

    Raises:
        ConfinementError: not for this system.
    """
    if sys.platform != "linux" or platform.machine() not in ALLOWED:
        raise ConfinementError(f"no sandbox on {sys.platform} {platform.machine()}")
    machine, names = ALLOWED[platform.machine()]
    numbers = {name: int(number) for name, number in (word.split("=") for word in names.split())}
    opening = numbers.pop("openat")
    steps = [(LOAD, 0, 0, MACHINE_AT), (JUMP_IF_EQUAL, 1, 0, machine), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, NUMBER_AT)]
    for number in numbers.values():
        steps += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, PERMIT)]
    steps += [(JUMP_IF_EQUAL, 1, 0, opening), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, OPEN_FLAGS_AT), (AND, 0, 0, WRITING)]
    steps += [(JUMP_IF_EQUAL, 0, 1, 0), (RETURN, 0, 0, PERMIT), (RETURN, 0, 0, REFUSE)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _restrict_reading() -> None:
    """Let this process open no files but those of Python and of system libraries, where the kernel has Landlock."""
    kinds = struct.pack("Q", READ_FILE | READ_FOLDER)
    ruleset = _libc.syscall(CREATE_RULESET, kinds, len(kinds), 0)
    if ruleset < 0:
        return
    installed = [place for place in sys.path if "site-packages" in place or "dist-packages" in place]
    for place in {sys.prefix, sys.base_prefix, *installed, *LIBRARIES}:
        if os.path.isdir(place):
            folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
            _libc.syscall(ADD_RULE, ruleset, BENEATH, struct.pack("=Qi", READ_FILE | READ_FOLDER, folder), 0)
            os.close(folder)
    _libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _prctl(option: int, *arguments: object) -> bool:
    """Whether the kernel did it."""
    rest = [*arguments, 0, 0, 0, 0][:4]
    return _libc.prctl(option, *(ctypes.c_ulong(a) if isinstance(a, int) else a for a in rest)) == 0
