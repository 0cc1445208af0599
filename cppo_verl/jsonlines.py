r"""JSON lines as they were written: logs, dumps of validations, data files.

A line ends at "\n" and nowhere else: a text may hold U+2028, U+0085 and what else Python calls a line boundary. Values
keep their types: text is never read as a date, whole numbers are exact however long, NaN and Infinity are floats.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cppo_verl.errors import UserError


class LineError(UserError, ValueError):
    """A line before the last is no JSON; the message names the file and the line."""


@dataclass(frozen=True)
class Line:
    """A line that holds something: its number from 1 and its value, or what is wrong with it in ``fault``."""

    number: int
    value: Any = None
    fault: str = ""


def lines(path: Path) -> Iterator[Line]:
    """The lines of a file one after the other, empty ones left out."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.strip():
                continue
            try:
                yield Line(number, json.loads(raw))
            except (ValueError, RecursionError) as error:  # as json and the text's decoder raise them
                yield Line(number, fault=f"not JSON ({error})")


def read(path: Path) -> tuple[list[Any], str]:
    """All values of a file, and a sentence about its last line, "" where that is whole.

    A last line that is no JSON is what a process leaves that was killed while it wrote; it is left out.
    LineError: a line before the last is no JSON.
    """
    found = list(lines(path))
    torn = found.pop() if found and found[-1].fault else None
    for line in found:
        if line.fault:
            raise LineError(f"{path}, line {line.number}: {line.fault}")
    values = [line.value for line in found]
    return values, f"{path}, line {torn.number}: the last line is torn and left out" if torn else ""
