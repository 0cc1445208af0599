"""Paths of a run that verl, or what it reads them with, would take for something else."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cppo_verl.launch.quoting import quote

MODEL = "actor_rollout_ref.model.path"
DATA = ("data.train_files", "data.val_files")


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each path that cannot work; of the keys ``MODEL`` and ``DATA``, where they are there."""
    for key in (MODEL, *DATA):
        for path in _files(values.get(key)):
            if path.startswith("~") and expanded(path) is None:
                yield f"{key}={path}: this user has no home folder to put for '~'; write the path out, or set HOME."
            if "::" in path and Path(path).is_file():
                yield f"{key}={path}: datasets takes '::' for a chain of file systems; give the folder another name."


def read_literally(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Override and reason for data files that are there, and whose names datasets would take for a pattern."""
    for key in DATA:
        files = _files(values.get(key))
        escaped = [glob.escape(file) if _is_misread(file) else file for file in files]
        if escaped != files:
            yield f"{key}=[{','.join(map(quote, escaped))}]", f"{key}: datasets reads * ? [ in a path as a pattern"


def _is_misread(file: str) -> bool:
    return glob.escape(file) != file and Path(file).is_file() and glob.glob(file) != [file]


def _files(value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return [file for file in found if isinstance(file, str)]


def expanded(path: str) -> Path | None:
    """The path with ``~`` replaced; None for a user without a home folder, as in containers with an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None
