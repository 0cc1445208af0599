"""What the command lines share: options made from settings, one line of result, one sentence of error."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m data_prep.MODULE`, described by the first line of its docstring."""
    return argparse.ArgumentParser(prog=f"python -m data_prep.{module}", description=(description or "").split("\n")[0])


def add_settings(parser: argparse.ArgumentParser, settings: Any, helps: Mapping[str, str] | None = None) -> None:
    """An option `--some-name` for every field of the dataclass ``settings``; without default it must be given."""
    for entry in fields(settings):
        given = {"required": True} if entry.default is MISSING else {"default": entry.default}
        text = f"{(helps or {}).get(entry.name, '')} ({'needed' if 'required' in given else '%(default)s'})".strip()
        kind = type(entry.default) if "default" in given else str
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, help=text, **given)


def run(work: Callable[[], object]) -> None:
    """Do ``work``; what is wrong with its input becomes a sentence on stderr and exit status 1."""
    try:
        work()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def say(line: str) -> None:
    """Print at once, through pipes too."""
    print(line, flush=True)


def report(out: Path, written: bool, done: str = "written") -> None:
    """Say that ``out`` was ``done``, which may be nothing, or that it is there already."""
    if done or not written:
        say(f"{out}: {done if written else 'already there, unchanged'}")
