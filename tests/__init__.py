"""Tests mirror the package: a folder a room. ``ROOT`` is the repository."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
