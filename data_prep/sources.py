"""Where rows come from: a data set on the Hugging Face hub, or a parquet, jsonl or csv file, read record by record.

Columns have dotted names where they are nested: `reward_model.ground_truth`. Values keep the types they were written
with, so `datasets` and pandas do not read here: they make dates of text and floats of long numbers.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cppo_verl import jsonlines

ENDINGS = (".parquet", ".jsonl", ".csv")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
BATCH_ROWS = 4096
CSV: Any = {"encoding": "utf-8-sig", "newline": ""}
csv.field_size_limit(1 << 20)  # bytes


class DataError(ValueError):
    """The data cannot be used: a sentence that says which file, where, why and, if it can be helped, how."""


@dataclass(frozen=True)
class Source:
    """``place`` is a path or a hub id `owner/name`; ``file`` and ``revision`` matter on the hub only."""

    place: str
    file: str = ""
    revision: str = "main"


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine; ``origin`` is what the manifest keeps of where it came from."""

    path: Path
    origin: Mapping[str, str]

    @property
    def name(self) -> str:
        """What messages call the file."""
        return str(self.path) if "repo" not in self.origin else f"{self.origin['repo']}/{self.origin['file']}"


@dataclass(frozen=True)
class Record:
    """Row ``number`` (line of a text file), from 1: the asked columns' values, or why it could not be read."""

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def locate(source: Source) -> LocalFile:
    """The file itself, or the hub's copy of it in the local cache; a DataError where there is none."""
    path = Path(os.path.expanduser(source.place))
    if not path.is_file():
        if path.suffix in ENDINGS or not HUB_ID.fullmatch(source.place):
            raise DataError(f"{source.place}: no such file, and no hub id of the form owner/name")
        return fetch(source)
    if path.suffix not in ENDINGS:
        raise DataError(f"{path}: unknown format: give a file that ends in {', '.join(ENDINGS)}")
    return LocalFile(path, {"file": path.name})


def fetch(source: Source) -> LocalFile:
    """Download (or find in the cache) ``source.file`` of a data set; without a name, its only data file."""
    from huggingface_hub import HfApi, hf_hub_download

    repo, revision = source.place, source.revision
    try:
        names = [source.file] if source.file else HfApi().list_repo_files(repo, revision=revision, repo_type="dataset")
        data = [name for name in names if name.endswith(ENDINGS)]
        path = Path(hf_hub_download(repo, *data, revision=revision, repo_type="dataset")) if len(data) == 1 else None
    except Exception as error:  # the hub's client lets exceptions of its HTTP library through
        raise DataError(
            f"{repo} (revision {revision}): the hub did not give it: {_first_line(error)}; "
            "without internet, copy the file here and name it with --source"
        ) from error
    if path is None:
        raise DataError(f"{repo}: has {len(data)} data files ({', '.join(data)}): choose one with --file")
    parts = path.parts  # the cache keeps files under snapshots/COMMIT/
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""
    return LocalFile(path, {"repo": repo, "file": data[0], "revision": revision, "commit": commit})


def list_columns(file: LocalFile) -> list[str]:
    """The dotted names of the file's columns; of a jsonl file, those of its first readable line."""
    with _naming(file):
        if file.path.suffix == ".parquet":
            table = pyarrow.parquet.read_schema(file.path).empty_table()
            while any(map(pyarrow.types.is_struct, table.schema.types)):
                table = table.flatten()
            return table.column_names
        if file.path.suffix == ".csv":
            with file.path.open(**CSV) as stream:
                return next(csv.reader(stream, strict=True), [])
        return next((list(record.values) for record in _read_jsonl(file) if not record.fault), [])


def read_records(file: LocalFile, columns: Sequence[str]) -> Iterator[Record]:
    """Every row of the file in order, with the values of ``columns`` (None where a row has no such value).

    Where the file is damaged or cut off it ends in a DataError with the last row that could be read.
    """
    with _naming(file) as last:
        if file.path.suffix == ".parquet":
            records = _read_parquet(file, columns)
        else:
            records = _read_csv(file) if file.path.suffix == ".csv" else _read_jsonl(file)
        for record in records:
            yield Record(record.number, {name: record.values.get(name) for name in columns}, record.fault)
            last[0] = record.number


@contextmanager
def _naming(file: LocalFile) -> Iterator[list[int]]:
    """Turns what readers raise into a DataError that names the file and the last row read, which the block puts in."""
    last = [0]
    try:
        yield last
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, csv.Error) as error:
        place = f"{'row' if file.path.suffix == '.parquet' else 'line'} {last[0]}"
        raise DataError(f"{file.name}: damaged or cut off after {place}: {_first_line(error)}") from error


def _read_parquet(file: LocalFile, columns: Sequence[str]) -> Iterator[Record]:
    with pyarrow.parquet.ParquetFile(file.path) as table:
        rows = (row for batch in table.iter_batches(BATCH_ROWS, columns=list(columns)) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Record(number, _flatten(row))


def _read_jsonl(file: LocalFile) -> Iterator[Record]:
    for line, following in pairwise(chain(jsonlines.lines(file.path), [None])):
        assert line is not None
        if line.fault and following is None and not _ends_with_newline(file.path):
            raise DataError(f"{file.name}: line {line.number}: the file is cut off in the middle of this line")
        fault = line.fault if line.fault or isinstance(line.value, dict) else "not a JSON object"
        yield Record(line.number, {} if fault else _flatten(line.value), fault and f"is {fault}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def _read_csv(file: LocalFile) -> Iterator[Record]:
    with file.path.open(**CSV) as stream:
        reader = csv.reader(stream, strict=True)
        header, before = next(reader, []), reader.line_num
        for cells in reader:
            if len(cells) == len(header):
                yield Record(before + 1, dict(zip(header, cells, strict=True)))
            elif cells:
                yield Record(before + 1, fault=f"has {len(cells)} fields, the header {len(header)}")
            before = reader.line_num


def _flatten(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
