"""The environment of a process that finds the stand-in for flash-attn; see README.md beside this file."""

import os
from pathlib import Path

from tests import ROOT

FOLDER = Path(__file__).parent


def environment(*modules: str) -> dict[str, str]:
    """This process's variables, the stand-in's, and further modules that verl is to import."""
    paths = [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "VERL_USE_EXTERNAL_MODULES": ",".join(("flash_attn_on_cpu", *modules)),
    }
