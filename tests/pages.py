"""The code of a page in docs/, so that a test runs what a reader copies."""

import re
from pathlib import Path

from tests import ROOT

NAME = re.compile(r"`([\w./]+\.(?:py|yaml|toml))`")


def text(page: str) -> str:
    """docs/``page``."""
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Its fenced blocks of a language, in order."""
    return [code for _, kind, code in _fenced(page) if kind == language]


def write(page: str, language: str, folder: Path) -> dict[str, Path]:
    """Write the blocks whose paragraph before names a file, the last name in it, below ``folder``; paths by name.

    A name that comes again is continued.
    """
    paths: dict[str, Path] = {}
    for before, kind, code in _fenced(page):
        named = NAME.findall(before)
        if kind == language and named:
            path = folder / named[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if named[-1] in paths else "w", encoding="utf-8") as file:
                file.write(code)
            paths[named[-1]] = path
    return paths


def _fenced(page: str) -> list[tuple[str, str, str]]:
    """(the paragraph before, language, code) of each fenced block."""
    parts = re.split(r"^```(\w*)\n(.*?)^```$", text(page), flags=re.MULTILINE | re.DOTALL)
    before = [part.strip().split("\n\n")[-1] for part in parts[::3]]
    return list(zip(before, parts[1::3], parts[2::3], strict=False))
