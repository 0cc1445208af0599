"""A Python as a laptop has it."""

import sys

import pytest


@pytest.fixture
def bare_python(tmp_path) -> str:
    """A Python that sees the standard library only: no torch, verl, hydra or ray."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    path.chmod(0o755)
    return str(path)
