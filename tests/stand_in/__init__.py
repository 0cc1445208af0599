"""The environment of a process that finds the stand-in for flash-attn; see README.md beside this file."""

import os
from pathlib import Path

from tests import ROOT


def variables() -> dict[str, str]:
    paths = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "VERL_USE_EXTERNAL_MODULES": "flash_attn_on_cpu",
    }


def environment() -> dict[str, str]:
    """This process's variables and those."""
    return {**os.environ, **variables()}
