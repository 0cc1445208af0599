"""Paths of a run that verl, or what it reads them with, would take for something else."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cppo_verl.launch.quoting import quote

MODEL = "actor_rollout_ref.model.path"
DATA = ("data.train_files", "data.val_files")


def problems(config: Any) -> Iterator[str]:
    """One sentence for each path of model and data that cannot work on this machine."""
    for key in (MODEL, *DATA):
        for path in files(config, key):
            if os.path.expanduser(path).startswith("~"):  # a container's unknown user
                yield f"{key}={path}: this user has no home folder to put for '~'; write the path out, or set HOME."
            if "::" in path and Path(path).is_file():
                yield f"{key}={path}: datasets takes '::' for a chain of file systems; give the folder another name."


def read_literally(config: Any) -> Iterator[tuple[str, str]]:
    """Override and reason for data files that are there, and whose names datasets would take for a pattern."""
    for key in DATA:
        given = files(config, key)
        misread = [glob.escape(path) != path and Path(path).is_file() and glob.glob(path) != [path] for path in given]
        if any(misread):
            literal = [glob.escape(path) if wrong else path for path, wrong in zip(given, misread, strict=True)]
            yield f"{key}=[{','.join(map(quote, literal))}]", f"{key}: datasets reads * ? [ in a path as a pattern"


def files(config: Any, key: str) -> list[str]:
    """The paths under a key of a DictConfig, one or a list; none where the value refers to one that is not there."""
    from omegaconf import OmegaConf  # a plan is made with Python alone
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # the start check says so
        return []
    return [value] if isinstance(value, str) else [file for file in value or () if isinstance(file, str)]
