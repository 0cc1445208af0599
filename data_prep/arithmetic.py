"""Sums and differences of single digits, solved left to right: the quickstart's data set.

`python -m data_prep.arithmetic --out DIR` writes train.parquet, val.parquet and manifest.json. A row asks for the value
of, say, `3+4-2+1`; its reference solution has one partial result a line, each computed from the line before, so an
error in the first partial result ruins the answer:

    3+4=7
    7-2=5
    5+1=6
    Answer: 6

Every partial result lies between 0 and ``limit``. Expressions are drawn uniformly, without replacement, for each number
of operands, so no expression occurs twice, in one split or across the two.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from data_prep import commands, storage

DATA_SOURCE = "arithmetic"
DIGITS = range(1, 10)

Move = tuple[str, int]


@dataclass(frozen=True)
class Arguments:
    """What decides the data, all of it. Rows are counts; ``limit`` is the largest partial result."""

    train: int = 4096
    val: int = 128
    seed: int = 0
    min_operands: int = 4
    max_operands: int = 6
    limit: int = 9

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give a number of rows of 1 or more")
        if not 2 <= self.min_operands <= self.max_operands:
            raise ValueError(
                f"min_operands = {self.min_operands}, max_operands = {self.max_operands}: "
                "give 2 <= min_operands <= max_operands"
            )
        if self.limit < max(DIGITS):
            raise ValueError(f"limit = {self.limit}: give {max(DIGITS)} or more, so that any digit can come first")


@dataclass(frozen=True)
class Expression:
    """A digit, then moves: 3+4-2 is Expression(3, (("+", 4), ("-", 2)))."""

    first: int
    moves: tuple[Move, ...]

    def __str__(self) -> str:
        return str(self.first) + "".join(f"{sign}{digit}" for sign, digit in self.moves)


def apply_move(value: int, move: Move) -> int:
    """value + digit or value - digit."""
    sign, digit = move
    return value + digit if sign == "+" else value - digit


def partial_results(expression: Expression) -> list[int]:
    """The value after each move, left to right; as long as ``expression.moves``."""
    values = [expression.first]
    for move in expression.moves:
        values.append(apply_move(values[-1], move))
    return values[1:]


def solution_text(expression: Expression, results: Sequence[int]) -> str:
    """One line `before sign digit = result` a move, then `Answer: last result`.

    ``results`` are the values written after each equals sign; each line starts from the value the line before wrote,
    whether or not that was right.
    """
    starts = [expression.first, *results[:-1]]
    steps = zip(starts, expression.moves, results, strict=True)
    lines = [f"{start}{sign}{digit}={result}" for start, (sign, digit), result in steps]
    return "\n".join([*lines, f"Answer: {results[-1]}"])


def reference_solution(expression: Expression) -> str:
    """The solution without error."""
    return solution_text(expression, partial_results(expression))


def parse_expression(text: str) -> Expression:
    """Inverse of ``str(expression)``."""
    moves = tuple((text[i], int(text[i + 1])) for i in range(1, len(text), 2))
    return Expression(int(text[0]), moves)


def allowed_moves(value: int, limit: int) -> list[Move]:
    """Moves from ``value`` whose result lies in 0..limit, in a fixed order."""
    return [move for move in product("+-", DIGITS) if 0 <= apply_move(value, move) <= limit]


@cache
def count_continuations(value: int, moves: int, limit: int) -> int:
    """How many sequences of ``moves`` allowed moves start at ``value``."""
    if moves == 0:
        return 1
    return sum(count_continuations(apply_move(value, m), moves - 1, limit) for m in allowed_moves(value, limit))


def count_expressions(operands: int, limit: int) -> int:
    """How many expressions of that many operands there are."""
    return sum(count_continuations(first, operands - 1, limit) for first in DIGITS)


def expression_at(index: int, operands: int, limit: int) -> Expression:
    """The expression number ``index`` of 0..count_expressions-1, in lexicographic order of first digit and moves."""
    first, index = _choose([(d, count_continuations(d, operands - 1, limit)) for d in DIGITS], index)
    value, moves = first, []
    for left in range(operands - 2, -1, -1):
        options = allowed_moves(value, limit)
        move, index = _choose([(m, count_continuations(apply_move(value, m), left, limit)) for m in options], index)
        moves.append(move)
        value = apply_move(value, move)
    return Expression(first, tuple(moves))


def draw_expressions(arguments: Arguments) -> list[Expression]:
    """train + val distinct expressions in random order, as many of each number of operands as divides evenly.

    Raises:
        ValueError: there are fewer expressions of some number of operands than its share asks for.
    """
    rng = random.Random(arguments.seed)
    lengths = range(arguments.min_operands, arguments.max_operands + 1)
    share, rest = divmod(arguments.train + arguments.val, len(lengths))
    drawn: list[Expression] = []
    for position, operands in enumerate(lengths):
        wanted, available = share + (position < rest), count_expressions(operands, arguments.limit)
        if wanted > available:
            total = arguments.train + arguments.val
            raise ValueError(
                f"train + val = {total} asks for {wanted} expressions with {operands} operands, of {available}: "
                "ask for fewer rows or raise min_operands or limit"
            )
        drawn += [expression_at(i, operands, arguments.limit) for i in rng.sample(range(available), wanted)]
    rng.shuffle(drawn)
    return drawn


def chat_prompt(expression: Expression) -> list[dict[str, str]]:
    """The conversation that asks for the value."""
    return [{"role": "user", "content": f"{expression}=?"}]


def make_row(expression: Expression, index: int, split: str) -> dict[str, Any]:
    """One row in verl's columns; the reference solution travels in extra_info."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": chat_prompt(expression),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(partial_results(expression)[-1])},
        "extra_info": {
            "index": index,
            "split": split,
            "expression": str(expression),
            "solution": reference_solution(expression),
        },
    }


def prepare(out: Path, arguments: Arguments) -> bool:
    """Write the two splits and the manifest into ``out``; False where they are there already, unchanged.

    Raises:
        ValueError: the arguments ask for more expressions than there are.
    """
    if storage.is_current(out, asdict(arguments)):
        return False
    drawn = draw_expressions(arguments)
    splits = {"val": drawn[: arguments.val], "train": drawn[arguments.val :]}
    rows = {split: [make_row(e, index, split) for index, e in enumerate(drawn)] for split, drawn in splits.items()}
    manifest = {"data_source": DATA_SOURCE, "arguments": asdict(arguments), "seed": arguments.seed}
    storage.write_splits(out, rows, manifest)
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = commands.parser_of("arithmetic", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for train.parquet, val.parquet, manifest.json")
    helps = {"train": "training rows", "val": "validation rows", "limit": "largest partial result"}
    commands.add_settings(parser, Arguments, helps)
    options = vars(parser.parse_args(argv))
    out = options.pop("out")
    commands.run(lambda: commands.report(out, prepare(out, Arguments(**options))))


def _choose(options: Sequence[tuple[Any, int]], index: int) -> tuple[Any, int]:
    """The option into whose share of the indices ``index`` falls, and the index within that share."""
    for option, size in options:
        if index < size:
            return option, index
        index -= size
    raise IndexError(f"index lies {index} beyond the last option")


if __name__ == "__main__":
    main()
