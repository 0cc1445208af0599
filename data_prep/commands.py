"""What the command lines share: options made from settings, one line of result, one sentence of error."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m data_prep.MODULE`, described by the first line of its docstring."""
    return argparse.ArgumentParser(prog=f"python -m data_prep.{module}", description=(description or "").split("\n")[0])


def add_settings(parser: argparse.ArgumentParser, settings: Any, helps: Mapping[str, str] | None = None) -> None:
    """An option `--some-name` for every field of the dataclass ``settings``; without default it must be given."""
    for entry in fields(settings):
        needed = entry.default is MISSING
        given = {"required": True} if needed else {"default": entry.default, "type": type(entry.default)}
        text = f"{(helps or {}).get(entry.name, '')} ({'needed' if needed else '%(default)s'})".strip()
        parser.add_argument(f"--{entry.name.replace('_', '-')}", help=text, **given)


def run(work: Callable[[], object]) -> None:
    """Do ``work``; what is wrong with its input becomes a sentence on stderr and exit status 1."""
    try:
        work()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}")


def say(line: str) -> None:
    """Print at once, through pipes too."""
    print(line, flush=True)


def report(out: object, written: bool) -> None:
    """Say that ``out`` was written, or that it is there already."""
    say(f"{out}: {'written' if written else 'already there, unchanged'}")
