"""One file of maths problems, from its source to verl's parquet: read, checked, deduplicated by prompt, written whole.

Beside NAME.parquet lies NAME.manifest.json: rows and sha256 of the output, source with revision and sha256, the counts
(rows read, skipped, by index, by prompt) and every argument that decides the output. With the same arguments, input and
output there is nothing to do.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_prep import commands, problems, storage
from data_prep.problems import BadRow, Problem
from data_prep.sources import DataError, LocalFile, Source, list_columns, locate, read_records

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Table:
    """What to make: the output's name, verl's data_source and split, and what its rows have to look like."""

    name: str
    data_source: str
    split: str
    rows: int | None = None
    largest_answer: int | None = None


@dataclass(frozen=True)
class Options:
    """How to make it; ``columns`` maps prompt, answer or index to a column's name."""

    columns: Mapping[str, str] = field(default_factory=dict)
    skip_bad_rows: bool = False
    keep_wording: bool = False


@dataclass
class Reading:
    """What a pass over the source found: the first problem of each prompt, in order, and the counts."""

    unique: dict[str, Problem] = field(default_factory=dict)
    indices: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)  # the first SHOWN_FAULTS
    read: int = 0
    skipped: int = 0
    conflicting_answers: int = 0

    def add(self, problem: Problem) -> None:
        """Count a row; keep it if its prompt is new."""
        first = self.unique.setdefault(problem.text, problem)
        self.conflicting_answers += first.answer != problem.answer
        self.indices.add(problem.index)

    def skip(self, fault: BadRow) -> None:
        """Count a bad row; remember and print the first ones."""
        self.skipped += 1
        if len(self.faults) < SHOWN_FAULTS:
            self.faults.append(str(fault))
            print(f"skipped: {fault}", file=sys.stderr)

    def counts(self) -> dict[str, int]:
        """For the manifest. A file without an index column has no count by index."""
        by_index = {} if self.indices <= {""} else {"unique_by_index": len(self.indices)}
        return by_index | {
            "rows_read": self.read,
            "bad_rows_skipped": self.skipped,
            "unique_by_prompt": len(self.unique),
            "repeated_prompts_dropped": self.read - self.skipped - len(self.unique),
            "repeats_with_another_answer": self.conflicting_answers,
        }


def prepare(out: Path, table: Table, source: Source, options: Options) -> Path:
    """Write ``out``/NAME.parquet and its manifest, unless they are there already, and say so; the file's path.

    Raises:
        DataError: see its message; nothing has been written then.
    """
    file = locate(source)
    columns = problems.match_columns(list_columns(file), options.columns, file.name)
    path, manifest_name = out / f"{table.name}.parquet", f"{table.name}.manifest.json"
    arguments = {
        **asdict(table),
        "source": {**file.origin, "sha256": storage.sha256_of(file.path)},
        "columns": asdict(columns),
        "skip_bad_rows": options.skip_bad_rows,
        "wording": "source" if options.keep_wording else [problems.INSTRUCTION, problems.REMINDER],
    }
    if storage.is_current(out, arguments, manifest_name):
        commands.report(path, False)
        return path
    reading = read_table(file, columns, table, options)
    counts = reading.counts()
    content = {"arguments": arguments, "counts": counts, "bad_rows": reading.faults}
    asked = [
        (found, found.prompt if options.keep_wording else problems.ask(found)) for found in reading.unique.values()
    ]
    rows = [problems.make_row(*pair, table.data_source, index, table.split) for index, pair in enumerate(asked)]
    storage.write_splits(out, {table.name: rows}, content, manifest_name)
    by_index = f"{counts['unique_by_index']} by index, " if "unique_by_index" in counts else ""
    commands.say(
        f"{path}: {len(reading.unique)} rows of {reading.read} read "
        f"({by_index}{len(reading.unique)} by prompt; {reading.skipped} bad rows skipped; "
        f"{reading.conflicting_answers} repeats with another answer, the first kept)"
    )
    return path


def read_table(file: LocalFile, columns: problems.Columns, table: Table, options: Options) -> Reading:
    """Check every row and keep the first of each prompt; stop at the first bad row unless told to skip."""
    reading = Reading()
    for record in read_records(file, columns.names):
        reading.read += 1
        try:
            reading.add(problems.read_problem(record, columns, file.name, table.largest_answer))
        except BadRow as fault:
            if not options.skip_bad_rows:
                raise BadRow(f"{fault} (--skip-bad-rows leaves such rows out)") from fault
            reading.skip(fault)
    if not reading.unique:
        raise DataError(f"{file.name}: has no usable row of {reading.read} read")
    if table.rows is not None and len(reading.unique) != table.rows:
        raise DataError(
            f"{file.name}: has {len(reading.unique)} different problems, {table.name} should have {table.rows}; "
            "give another --source, or the number you expect with --problems"
        )
    return reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every command reading a source has."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet file and its manifest")
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave bad rows out and count them")
    parser.add_argument("--keep-wording", action="store_true", help="prompts as the source has them")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the rows come from, for commands with one source."""
    parser.add_argument("--source", help="a hub id owner/name, or a parquet, jsonl or csv file")
    parser.add_argument("--file", help="the file inside the hub's data set, where it has several")
    parser.add_argument("--revision", help="branch, tag or commit on the hub (main)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="ROLE=NAME", help="columns for the roles prompt, answer, index"
    )


def choose_source(declared: Source, options: argparse.Namespace) -> Source:
    """The declared source with what the command line changes; a place of one's own drops the declared file."""
    base = declared if options.source in (None, declared.place) else Source(options.source)
    return Source(base.place, options.file or base.file, options.revision or base.revision)


def read_options(options: argparse.Namespace) -> Options:
    """Options from the command line.

    Raises:
        DataError: --columns is not of the form ROLE=NAME.
    """
    pairs = [text.partition("=") for text in getattr(options, "columns", [])]
    for role, equals, name in pairs:
        if role not in ("prompt", "answer", "index") or not (equals and name):
            raise DataError(f"--columns {role}{equals}{name}: give prompt=NAME, answer=NAME or index=NAME")
    return Options({role: name for role, _, name in pairs}, options.skip_bad_rows, options.keep_wording)
