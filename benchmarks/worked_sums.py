"""What the answers to sums look like, before and after a run: python -m benchmarks.worked_sums RUN [RUN ...]

Reads a run's first and last validation on reasoning-gym's chain_sum, whose warm start works sums out line by line
("3+4=7"). Counts the answers with more lines than the sum has signs, and the lines that are right, by their sign.
"""

import argparse
import re
from pathlib import Path

from pandas import DataFrame, Series

from data_prep import validations

SUM = re.compile(r"-?\d+(?: [+-] \d+)+")  # in the question
LINE = re.compile(r"(-?\d+)([+-])(-?\d+)=(-?\d+)")


def count(responses: DataFrame) -> dict[str, float]:
    """Shares of a validation's responses (``input``, ``output``), and of their lines; NaN where there is none.

    ``too long``: answers with more lines than their sum has signs; ``+``, ``-``: right lines of those with that sign.
    """
    too_long, right = [], {"+": [], "-": []}
    for entry in responses.itertuples():
        lines = [line.strip() for line in entry.output.splitlines() if line.strip()]
        if sums := SUM.findall(entry.input):
            too_long.append(len(lines) > len(sums[-1].split()) // 2)
        for one, sign, other, result in (match.groups() for line in lines if (match := LINE.fullmatch(line))):
            right[sign].append(int(one) + int(sign + "1") * int(other) == int(result))
    return {name: Series(found, dtype=float).mean() for name, found in {"too long": too_long, **right}.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worked_sums", description=(__doc__ or "").split(":")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        steps = validations.read(run)
        for step in (min(steps), max(steps)):
            found = ", ".join(f"{name} {share:.0%}" for name, share in count(steps[step]).items())
            print(f"{run.name}, step {step}: {found}")


if __name__ == "__main__":
    main()
