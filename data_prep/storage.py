"""Files that appear whole or not at all, and the manifest that says what they are.

A manifest is `manifest.json` in the output folder: the arguments, and for each file its sha256. A command whose
arguments and files match an existing manifest has nothing to do.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it into place; a failure leaves ``path`` alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows of nested dictionaries as one parquet file, written atomically."""
    write_atomically(path, lambda temporary: pandas.DataFrame(rows).to_parquet(temporary, index=False))


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as ``folder``/manifest.json, atomically; write it last, after the files it describes."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / MANIFEST, lambda temporary: _write_text(temporary, text))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of ``folder``, or None where there is none or it is not JSON (an older or broken output)."""
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def is_current(folder: Path, arguments: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds exactly what ``arguments`` would make: same arguments, every listed file unchanged."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("arguments") != dict(arguments):
        return False
    files = manifest.get("files", {})
    return bool(files) and all(
        (folder / name).is_file() and sha256_of(folder / name) == entry["sha256"] for name, entry in files.items()
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
