"""Everything for the paper's runs: the three AIME validation files, DAPO-Math-17k, and the training file without them.

`python -m data_prep.math_data --out DIR` writes aime24.parquet, aime25.parquet, aime26.parquet, dapo_math.parquet and
train.parquet, which is dapo_math.parquet less what is in a validation file. What is there already is left alone.
"""

from collections.abc import Sequence

from data_prep import aime, commands, contamination, dapo_math, math_table
from data_prep.sources import Source


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = commands.parser_of("math_data", __doc__)
    math_table.add_arguments(parser)
    parser.add_argument("--train-source", default="", help="hub id or file for DAPO-Math-17k")
    for year in aime.HUB:
        parser.add_argument(f"--aime{year % 100}-source", default="", help=f"hub id or file for AIME {year}")
    options = parser.parse_args(argv)

    def work() -> None:
        how, validation = math_table.read_options(options), []
        for year, declared in aime.HUB.items():
            place = getattr(options, f"aime{year % 100}_source")
            validation.append(aime.prepare(options.out, year, Source(place) if place else declared, how))
        place = options.train_source
        everything = dapo_math.prepare(options.out, Source(place) if place else dapo_math.HUB, how)
        contamination.remove(everything, validation, options.out / "train.parquet")

    commands.run(work)


if __name__ == "__main__":
    main()
