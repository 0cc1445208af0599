"""Sums and differences of single digits, solved left to right: the quickstart's data set.

`python -m data_prep.arithmetic --out DIR` writes train.parquet, val.parquet and manifest.json. A row asks for the value
of, say, `3+4-2`; its reference solution is `3+4=7`, `7-2=5`, `Answer: 5`, each on a line, so an error in the first line
ruins the answer. Every partial result is a digit too. From any digit there are nine moves to another one, so there are
9^n expressions of n operands; none occurs twice, in one split or across the two.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_prep import commands, storage

DATA_SOURCE = "arithmetic"
LARGEST = 9  # partial result
OPERANDS = (4, 5, 6)
TERM = re.compile(r"[+-]?\d")


@dataclass(frozen=True)
class Arguments:
    """What decides the data, all of it; ``train`` and ``val`` are rows."""

    train: int = 4096
    val: int = 128
    seed: int = 0


def partial_results(expression: str) -> list[int]:
    """The value after each move of `3+4-2+1`, left to right."""
    return list(accumulate(map(int, TERM.findall(expression))))[1:]


def solution_text(expression: str, results: Sequence[int]) -> str:
    """The solution with ``results`` after the equals signs, each line starting from what the one before it wrote."""
    first, *moves = TERM.findall(expression)
    steps = zip([first, *results[:-1]], moves, results, strict=True)
    return "\n".join([*(f"{start}{move}={result}" for start, move, result in steps), f"Answer: {results[-1]}"])


def reference_solution(expression: str) -> str:
    """The solution without error."""
    return solution_text(expression, partial_results(expression))


def expression_at(index: int, operands: int) -> str:
    """Number ``index`` of the 9^operands expressions; its digits to base 9 choose the first digit and the moves."""
    first, *choices = (index // 9**place % 9 for place in reversed(range(operands)))
    value = first + 1
    text = str(value)
    for choice in choices:
        moves = [*range(1, LARGEST - value + 1), *range(-1, -value - 1, -1)]
        text += f"{moves[choice]:+d}"
        value += moves[choice]
    return text


def draw_expressions(arguments: Arguments) -> list[str]:
    """train + val distinct expressions in random order, as many of each number of OPERANDS as divides evenly.

    ValueError: there are not so many.
    """
    rng = random.Random(arguments.seed)
    share, rest = divmod(arguments.train + arguments.val, len(OPERANDS))
    drawn: list[str] = []
    for position, operands in enumerate(OPERANDS):
        chosen = rng.sample(range(9**operands), share + (position < rest))
        drawn += [expression_at(index, operands) for index in chosen]
    rng.shuffle(drawn)
    return drawn


def chat_prompt(expression: str) -> list[dict[str, str]]:
    """The conversation that asks for the value."""
    return [{"role": "user", "content": f"{expression}=?"}]


def row_of(expression: str, index: int, split: str) -> dict[str, Any]:
    """An expression in verl's columns."""
    own = {"index": index, "split": split, "expression": expression, "solution": reference_solution(expression)}
    return storage.verl_row(DATA_SOURCE, chat_prompt(expression), "math", str(partial_results(expression)[-1]), **own)


def prepare(out: Path, arguments: Arguments) -> bool:
    """Write the two splits and the manifest into ``out``; False where they are there already, unchanged."""
    if storage.is_current(out, asdict(arguments)):
        return False
    drawn = draw_expressions(arguments)
    splits = {"val": drawn[: arguments.val], "train": drawn[arguments.val :]}
    rows = {
        split: [row_of(expression, index, split) for index, expression in enumerate(expressions)]
        for split, expressions in splits.items()
    }
    storage.write_splits(out, rows, {"data_source": DATA_SOURCE, "arguments": asdict(arguments)})
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    commands.prepare("arithmetic", __doc__, prepare, Arguments, ["out"], argv)


if __name__ == "__main__":
    main()
