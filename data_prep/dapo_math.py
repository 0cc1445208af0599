"""DAPO-Math-17k as a training file in verl's columns, deduplicated by prompt.

`python -m data_prep.dapo_math --out DIR` writes DIR/dapo_math.parquet and its manifest, from the hub or, with
`--source FILE`, from a parquet, jsonl or csv file. The hub's 1,791,700 rows are 17,917 indices 100 times; with a prompt
of their own there are 17,398.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep import commands, math_table
from data_prep.math_table import Options, Table
from data_prep.sources import Source

HUB = Source("BytedTsinghua-SIA/DAPO-Math-17k", "data/dapo-math-17k.parquet")
TABLE = Table(name="dapo_math", data_source="math_dapo", split="train")


def prepare(out: Path, source: Source = HUB, options: Options | None = None) -> Path:
    """Write the file and say so; the file's path."""
    return math_table.prepare(out, TABLE, source, options or Options())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = commands.parser_of("dapo_math", __doc__)
    math_table.add_arguments(parser)
    math_table.add_source_arguments(parser)
    options = parser.parse_args(argv)
    source = math_table.choose_source(HUB, options)
    commands.run(lambda: prepare(options.out, source, math_table.read_options(options)))


if __name__ == "__main__":
    main()
