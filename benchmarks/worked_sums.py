"""What the answers to sums look like, before and after a run: python -m benchmarks.worked_sums RUN [RUN ...]

Reads a run's first and last validation on reasoning-gym's chain_sum, whose warm start works sums out line by line
("3+4=7"). Counts the answers with more lines than the sum has signs, and the lines that are right, by their sign.
"""

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep import validations

SUM = re.compile(r"-?\d+(?: [+-] \d+)+")  # in the question
LINE = re.compile(r"(-?\d+)([+-])(-?\d+)=(-?\d+)")


def count(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of a validation's responses, and of their lines.

    Args:
        entries: as verl writes them, with ``input`` and ``output``.

    Returns:
        ``too long``, the share of answers with more lines than their sum has signs; ``+`` and ``-``, the share of
        lines with that sign that are right. NaN where there is nothing to count.
    """
    too_long: list[bool] = []
    right: dict[str, list[bool]] = {"+": [], "-": []}
    for entry in entries:
        lines = [line.strip() for line in entry["output"].splitlines() if line.strip()]
        sums = SUM.findall(entry["input"])
        if sums:
            too_long.append(len(lines) > len(sums[-1].split()) // 2)
        for match in filter(None, map(LINE.fullmatch, lines)):
            one, sign, other, result = match.groups()
            value = int(one) + int(other) * (1 if sign == "+" else -1)
            right[sign].append(value == int(result))
    return {"too long": _share(too_long), **{sign: _share(found) for sign, found in right.items()}}


def _share(found: list[bool]) -> float:
    return sum(found) / len(found) if found else float("nan")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worked_sums", description=(__doc__ or "").split(":")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        steps = validations.read(run)
        for step in (min(steps), max(steps)):
            found = count(entry for given in steps[step].values() for entry in given)
            print(f"{run.name}, step {step}: " + ", ".join(f"{name} {share:.0%}" for name, share in found.items()))


if __name__ == "__main__":
    main()
