"""Everything for the paper's runs: the three AIME validation files, DAPO-Math-17k, and the training file without them.

`python -m data_prep.math_data --out DIR` writes aime24.parquet, aime25.parquet, aime26.parquet, dapo_math.parquet and
train.parquet, which is dapo_math.parquet less what is in a validation file. What is there already is left alone.
"""

from collections.abc import Sequence

from data_prep import aime, commands, contamination, dapo_math, math_table


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = math_table.parser_of("math_data", __doc__, one_source=False)
    tables = {table.name: table for table in aime.TABLES.values()} | {"train": dapo_math.TABLE}
    for name, table in tables.items():
        parser.add_argument(f"--{name}-source", help=f"hub id or file instead of {table.source.place}")
    options = parser.parse_args(argv)

    def work() -> None:
        made = []
        for name, table in tables.items():
            options.source = getattr(options, f"{name}_source")
            made.append(math_table.prepare_as_told(table, options))
        *validation, everything = made
        contamination.remove(everything, validation, options.out / "train.parquet")

    commands.run(work)


if __name__ == "__main__":
    main()
