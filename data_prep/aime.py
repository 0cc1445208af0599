"""AIME 2024, 2025 and 2026 as validation files: 30 rows each, once, with data_source aime24, aime25, aime26.

`python -m data_prep.aime --out DIR [--year 2025]` writes DIR/aime25.parquet and its manifest; without a year all three.
The hub's copy of 2024 has every problem 32 times and calls itself math_dapo, as the training data does.
"""

from collections.abc import Sequence
from dataclasses import replace

from data_prep import commands, math_table
from data_prep.math_table import Table
from data_prep.sources import Source

HUB = {2024: "BytedTsinghua-SIA/AIME-2024", 2025: "math-ai/aime25", 2026: "MathArena/aime_2026"}
PROBLEMS = 30
TABLES = {
    year: Table(f"aime{year % 100}", f"aime{year % 100}", "validation", Source(place), PROBLEMS, largest_answer=999)
    for year, place in HUB.items()
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = math_table.parser_of("aime", __doc__)
    parser.add_argument("--year", type=int, choices=sorted(HUB), help="one year only; needed with --source")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="how many there should be (%(default)s)")
    options = parser.parse_args(argv)
    if options.year is None and (options.source or options.file or options.revision or options.columns):
        parser.error("--source, --file, --revision and --columns belong to one file: give --year")

    def work() -> None:
        for year in [options.year] if options.year else sorted(HUB):
            math_table.prepare_as_told(replace(TABLES[year], rows=options.problems), options)

    commands.run(work)


if __name__ == "__main__":
    main()
