"""Where rows come from: a data set on the Hugging Face hub, or a parquet, jsonl or csv file, read record by record.

Columns have dotted names where they are nested: `reward_model.ground_truth`. Values keep the types they were written
with, so `datasets` and pandas do not read here: they make dates of text and floats of long numbers.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cppo_verl import jsonlines

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    """``place`` is `row 3` or `line 3`, from 1; its values by column, or why it could not be read."""

    place: str
    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def locate(source: Source) -> LocalFile:
    """The file itself, or the hub's copy of it in the local cache; a DataError where there is none."""
    path = Path(source.place)
    if not path.is_file():
        if path.suffix in READERS or not HUB_ID.fullmatch(source.place):
            raise DataError(f"{path}: no such file, and no hub id of the form owner/name")
        return fetch(source)
    if path.suffix not in READERS:
        raise DataError(f"{path}: unknown format: give a file that ends in {', '.join(READERS)}")
    return LocalFile(path, {"file": path.name})


def fetch(source: Source) -> LocalFile:
    """Download (or find in the cache) ``source.file`` of a data set; without a name, its only data file."""
    from huggingface_hub import HfApi, hf_hub_download

    repo, revision = source.place, source.revision
    try:
        names = [source.file] if source.file else HfApi().list_repo_files(repo, revision=revision, repo_type="dataset")
        data = [name for name in names if name.endswith(tuple(READERS))]
        path = Path(hf_hub_download(repo, *data, revision=revision, repo_type="dataset")) if len(data) == 1 else None
    except Exception as error:  # the hub's client lets exceptions of its HTTP library through
        raise DataError(
            f"{repo} (revision {revision}): the hub did not give it: {_first_line(error)}; "
            "without internet, copy the file here and name it with --source"
        ) from error
    if path is None:
        raise DataError(f"{repo}: has {len(data)} data files ({', '.join(data)}): choose one with --file")
    commit = path.parents[len(Path(data[0]).parts) - 1].name  # the cache has files as snapshots/COMMIT/FILE
    return LocalFile(path, {"repo": repo, "file": data[0], "revision": revision, "commit": commit})


def read_records(file: LocalFile) -> Iterator[Record]:
    """Every row of the file in order.

    Where the file is damaged or cut off it ends in a DataError with the last row that could be read.
    """
    after = ""
    try:
        for record in READERS[file.path.suffix](file.path):
            yield record
            after = f" after {record.place}"
    except (pyarrow.ArrowException, OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file.name}: damaged or cut off{after}: {_first_line(error)}") from error


def list_columns(file: LocalFile) -> list[str]:
    """The dotted names of the first readable row's columns."""
    return next((list(record.values) for record in read_records(file) if not record.fault), [])


def _read_parquet(path: Path) -> Iterator[Record]:
    with pyarrow.parquet.ParquetFile(path) as table:
        rows = (row for batch in table.iter_batches(4096) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Record(f"row {number}", _flatten(row))


def _read_jsonl(path: Path) -> Iterator[Record]:
    fault = ""
    for line in jsonlines.lines(path):
        fault = line.fault if line.fault or isinstance(line.value, dict) else "not a JSON object"
        yield Record(f"line {line.number}", {} if fault else _flatten(line.value), fault and f"is {fault}")
    if fault:
        with path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read() != b"\n":
                raise ValueError("the file ends in the middle of this line")


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader, [])
        for cells in filter(None, reader):
            place = f"line {reader.line_num}"  # where it ends, if it has several
            if len(cells) == len(header):
                yield Record(place, dict(zip(header, cells, strict=True)))
            else:
                yield Record(place, fault=f"has {len(cells)} fields, the header {len(header)}")


READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _flatten(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
