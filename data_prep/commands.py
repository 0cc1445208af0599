"""What the command lines share: options made from settings, one line of result, one sentence of error."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m data_prep.MODULE`, described by the first line of its docstring."""
    return argparse.ArgumentParser(prog=f"python -m data_prep.{module}", description=(description or "").split("\n")[0])


def prepare(
    module: str, description: str | None, work: Callable[..., bool], settings: Any, paths: list[str], argv: Any
) -> None:
    """The command line of a preparer: ``work(*paths, settings)``, and whether it wrote the last of the paths.

    It has an option for each of ``paths``, which are needed, and for each field of the dataclass ``settings``.
    """
    parser = parser_of(module, description)
    for name in paths:
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder")
    for entry in fields(settings):
        option = f"--{entry.name.replace('_', '-')}"
        parser.add_argument(option, default=entry.default, type=type(entry.default), help="(%(default)s)")
    options = vars(parser.parse_args(argv))
    for name, value in options.items():
        if name != "seed" and isinstance(value, (int, float)) and value < 0:
            parser.error(f"argument --{name.replace('_', '-')}: {value} is below 0")
    places = [options.pop(name) for name in paths]
    run(lambda: report(places[-1], work(*places, settings(**options))))


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
