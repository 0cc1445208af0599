"""Everything for the paper's runs: the three AIME validation files, DAPO-Math-17k, and the training file without them.

`python -m data_prep.math_data --out DIR` writes aime24.parquet, aime25.parquet, aime26.parquet, dapo_math.parquet and
train.parquet, which is dapo_math.parquet less what is in a validation file. What is there already is left alone.
"""

from collections.abc import Sequence

from data_prep import aime, commands, contamination, dapo_math, math_table


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = math_table.parser_of("math_data", __doc__, one_source=False)
    parser.add_argument("--train-source", help="hub id or file for DAPO-Math-17k")
    for year in aime.HUB:
        parser.add_argument(f"--aime{year % 100}-source", help=f"hub id or file for AIME {year}")
    options = parser.parse_args(argv)

    def work() -> None:
        validation = []
        for year, declared in aime.HUB.items():
            table = aime.table(year)
            place = getattr(options, f"{table.name}_source")
            validation.append(math_table.prepare_as_told(table, declared, options, place))
        everything = math_table.prepare_as_told(dapo_math.TABLE, dapo_math.HUB, options, options.train_source)
        contamination.remove(everything, validation, options.out / "train.parquet")

    commands.run(work)


if __name__ == "__main__":
    main()
