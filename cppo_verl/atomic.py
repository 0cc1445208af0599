"""Files that appear whole or not at all."""

import glob
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVER_SECONDS = 600


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path beside ``path`` to write to, moved over it at the end, and deleted when the writing fails.

    The folder is made where it is missing. A process killed while writing leaves ``.NAME.HEX.tmp``, which the next
    write of ``path`` deletes once nobody has written to it for LEFTOVER_SECONDS.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk, which names no file
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """The whole file or the old one, never a part; text as UTF-8."""
    with replacing(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def writable(text: str) -> str:
    """``text`` with a question mark for what UTF-8 has no bytes for, as names of files and models' answers may hold."""
    return text.encode("utf-8", "replace").decode()


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            if time.time() - leftover.lstat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()
        except FileNotFoundError:  # another process has just finished with it
            continue
