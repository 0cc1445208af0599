"""One file of maths problems, from its source to verl's parquet: read, checked, deduplicated by prompt, written whole.

Beside NAME.parquet lies NAME.manifest.json: rows and sha256 of the output, source with revision and sha256, counts and
every argument that decides the output.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_prep import commands, problems, storage
from data_prep.problems import BadRow, Problem
from data_prep.sources import DataError, LocalFile, Source, list_columns, locate, read_records

KEPT_FAULTS = 20


@dataclass(frozen=True)
class Table:
    """What to make, of what: the output's name, verl's data_source and split, and what its rows have to look like."""

    name: str
    data_source: str
    split: str
    source: Source
    rows: int | None = None
    largest_answer: int | None = None


def prepare(
    out: Path,
    table: Table,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
    keep_wording: bool = False,
) -> Path:
    """Write ``out``/NAME.parquet and its manifest, unless they are there already, and say so; the file's path.

    ``columns`` are names by role (prompt, answer). After a DataError nothing has been written.
    """
    file = locate(table.source)
    found = problems.match_columns(list_columns(file), columns or {}, file.name)
    path, manifest_name = out / f"{table.name}.parquet", f"{table.name}.manifest.json"
    arguments = {
        **asdict(table),
        "source": {**file.origin, "sha256": storage.sha256_of(file.path)},
        "columns": found,
        "skip_bad_rows": skip_bad_rows,
        "wording": "source" if keep_wording else [problems.INSTRUCTION, problems.REMINDER],
    }
    if storage.is_current(out, arguments, manifest_name):
        commands.report(path, False)
        return path
    unique, counts, faults = read_table(file, found, table, skip_bad_rows)
    rows = []
    for index, problem in enumerate(unique):
        prompt = [{"role": "user", "content": problem.prompt if keep_wording else problems.ask(problem)}]
        own = {"index": index, "split": table.split}
        rows.append(storage.verl_row(table.data_source, prompt, "math", problem.answer, **own))
    content = {"arguments": arguments, "counts": counts, "bad_rows": faults}
    storage.write_splits(out, {table.name: rows}, content, manifest_name)
    commands.say(f"{path}: {', '.join(f'{name} {count}'.replace('_', ' ') for name, count in counts.items())}")
    return path


def read_table(
    file: LocalFile, columns: Mapping[str, str], table: Table, skip_bad_rows: bool
) -> tuple[list[Problem], dict[str, int], list[str]]:
    """The first problem of each prompt, in order, counts and the first faults.

    A bad row stops it, unless such rows are skipped.
    """
    unique: dict[str, Problem] = {}
    faults: list[str] = []
    read = skipped = conflicting = 0
    for record in read_records(file):
        read += 1
        try:
            problem = problems.read_problem(record, columns, file.name, table.largest_answer)
        except BadRow as fault:
            if not skip_bad_rows:
                raise BadRow(f"{fault} (--skip-bad-rows leaves such rows out)") from fault
            skipped += 1
            faults += [str(fault)] if skipped <= KEPT_FAULTS else []
            continue
        conflicting += unique.setdefault(problem.text, problem).answer != problem.answer
    if not unique:
        raise DataError(f"{file.name}: has no usable row of {read} read")
    if table.rows is not None and len(unique) != table.rows:
        raise DataError(
            f"{file.name}: has {len(unique)} different problems, {table.name} should have {table.rows}; "
            "give another --source, or the number you expect with --problems"
        )
    counts = {
        "rows_read": read,
        "bad_rows_skipped": skipped,
        "unique_by_prompt": len(unique),
        "repeated_prompts_dropped": read - skipped - len(unique),
        "repeats_with_another_answer": conflicting,
    }
    return list(unique.values()), counts, faults


def parser_of(module: str, description: str | None, one_source: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every command reading sources has, and those of ``one_source``."""
    parser = commands.parser_of(module, description)
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet file and its manifest")
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave bad rows out and count them")
    parser.add_argument("--keep-wording", action="store_true", help="prompts as the source has them")
    parser.set_defaults(source=None, file=None, revision=None, columns=[])
    if one_source:
        parser.add_argument("--source", help="a hub id owner/name, or a parquet, jsonl or csv file")
        parser.add_argument("--file", help="the file inside the hub's data set, where it has several")
        parser.add_argument("--revision", help="branch, tag or commit on the hub (main)")
        parser.add_argument("--columns", nargs="+", metavar="ROLE=NAME", help="columns of prompt and answer")
    return parser


def prepare_as_told(table: Table, options: argparse.Namespace) -> Path:
    """``prepare`` with what the command line says; a source of one's own drops the declared file."""
    columns = dict[str, str]()
    for text in options.columns:
        role, _, name = text.partition("=")
        if role not in problems.COLUMNS:
            raise DataError(f"--columns {text}: give prompt=NAME or answer=NAME")
        columns[role] = name
    base = table.source if options.source in (None, table.source.place) else Source(options.source)
    source = Source(base.place, options.file or base.file, options.revision or base.revision)
    table = replace(table, source=source)
    return prepare(options.out, table, columns, options.skip_bad_rows, options.keep_wording)
