"""DAPO-Math-17k as a training file in verl's columns, deduplicated by prompt.

`python -m data_prep.dapo_math --out DIR [--source FILE]` writes DIR/dapo_math.parquet and its manifest. The hub's
1,791,700 rows are 17,917 indices 100 times; with a prompt of their own there are 17,398.
"""

from collections.abc import Sequence

from data_prep import commands, math_table
from data_prep.math_table import Table
from data_prep.sources import Source

HUB = Source("BytedTsinghua-SIA/DAPO-Math-17k", "data/dapo-math-17k.parquet")
TABLE = Table("dapo_math", data_source="math_dapo", split="train", source=HUB)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    options = math_table.parser_of("dapo_math", __doc__).parse_args(argv)
    commands.run(lambda: math_table.prepare_as_told(TABLE, options))


if __name__ == "__main__":
    main()
