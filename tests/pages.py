"""The code of a page in docs/, so that a test runs what a reader copies."""

import re
from pathlib import Path

from tests import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"#\s*(\S+?)(, continued)?\n")


def text(page: str) -> str:
    """docs/``page``."""
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Its fenced blocks of a language, in order."""
    return [code for kind, code in BLOCK.findall(text(page)) if kind == language]


def files(page: str, language: str) -> dict[str, str]:
    """By name, the blocks that begin with a file's name as a comment; "NAME, continued" adds to the one before."""
    found: dict[str, str] = {}
    for code in blocks(page, language):
        name = NAME.match(code)
        if name:
            found[name[1]] = found.get(name[1], "") + code
    return found


def write(page: str, language: str, folder: Path) -> dict[str, Path]:
    """Write those files below ``folder``; paths by name."""
    paths = {name: folder / name for name in files(page, language)}
    for name, code in files(page, language).items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_text(code, encoding="utf-8")
    return paths
