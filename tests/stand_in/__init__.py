"""The environment of a process that finds the stand-in for flash-attn; see README.md beside this file."""

import os
from pathlib import Path

from tests import ROOT

FOLDER = Path(__file__).parent


def variables(*modules: str) -> dict[str, str]:
    """The stand-in's variables; ``modules`` are further ones that verl is to import."""
    paths = [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "VERL_USE_EXTERNAL_MODULES": ",".join(("flash_attn_on_cpu", *modules)),
    }


def environment(*modules: str) -> dict[str, str]:
    """This process's variables and those."""
    return {**os.environ, **variables(*modules)}
