"""Where rows come from: a data set on the Hugging Face hub, or a parquet, jsonl or csv file, read record by record.

Columns have dotted names where they are nested: `reward_model.ground_truth`. Whatever is wrong with a file becomes a
DataError of one sentence; what is wrong with a single line becomes the record's ``fault``, for the caller to judge.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

ENDINGS = (".parquet", ".jsonl", ".csv")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
BATCH_ROWS = 4096
MAX_FIELD = 1 << 20


class DataError(ValueError):
    """The data cannot be used; the message says which file, where, why and, if it can be helped, how."""


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
    """The file itself, or the hub's copy of it in the local cache (downloaded when it is not there).

    Raises:
        DataError: there is no such file, its format is not known, or the hub does not give it.
    """
    path = Path(source.place).expanduser()
    if path.is_file():
        _check_ending(str(path))
        return LocalFile(path, {"file": path.name})
    if path.suffix in ENDINGS or not HUB_ID.fullmatch(source.place):
        raise DataError(f"{source.place}: no such file, and no hub id of the form owner/name")
    return fetch(source)


def fetch(source: Source) -> LocalFile:
    """Download (or find in the cache) ``source.file`` of a data set; without a name, its only data file."""
    from huggingface_hub import HfApi, hf_hub_download

    repo, revision = source.place, source.revision
    try:
        names = [source.file] if source.file else HfApi().list_repo_files(repo, revision=revision, repo_type="dataset")
        file = _only_data_file(names, source)
        path = Path(hf_hub_download(repo, file, revision=revision, repo_type="dataset"))
    except DataError:
        raise
    except Exception as error:  # the hub's client lets exceptions of its HTTP library through
        raise DataError(
            f"{repo} (revision {revision}): the hub did not give it: {one_line(error)}; "
            "without internet, copy the file here and name it with --source"
        ) from error
    _check_ending(file)
    return LocalFile(path, {"repo": repo, "file": file, "revision": revision, "commit": _commit_of(path)})


def list_columns(file: LocalFile) -> list[str]:
    """The dotted names of the file's columns; of a jsonl file, those of its first readable line."""
    with _naming(file):
        if file.path.suffix == ".parquet":
            return _leaves(pyarrow.parquet.read_schema(file.path))
        if file.path.suffix == ".csv":
            with _open_csv(file.path) as stream:
                return next(csv.reader(stream, strict=True), [])
    faults = []
    for record in _read_jsonl(file):
        if not record.fault:
            return list(record.values)
        faults.append(f"{file.name}: line {record.number}: {record.fault}, nor is any other line readable")
    if faults:
        raise DataError(faults[0])
    return []


def read_records(file: LocalFile, columns: Sequence[str]) -> Iterator[Record]:
    """Every row of the file in order, with the values of ``columns`` (None where a row has no such value).

    Raises:
        DataError: the file is damaged or cut off; the message has the last row that could be read.
    """
    if file.path.suffix == ".parquet":
        return _read_parquet(file, columns)
    records = _read_csv(file) if file.path.suffix == ".csv" else _read_jsonl(file)
    return (Record(r.number, {name: r.values.get(name) for name in columns}, r.fault) for r in records)


def one_line(error: BaseException) -> str:
    """The exception's first line, or its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def run_command(command: Callable[[], None]) -> None:
    """Run a command line; a DataError becomes one sentence on stderr and exit status 1."""
    try:
        command()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


class _naming:
    """Turns what readers raise inside the block into a DataError that names the file and the row."""

    def __init__(self, file: LocalFile):
        self.file, self.where = file, ""

    def __enter__(self) -> "_naming":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pyarrow.ArrowException, OSError, ValueError, csv.Error)):
            if isinstance(error, DataError):
                return
            where = f"{self.where}: " if self.where else ""
            raise DataError(f"{self.file.name}: {where}damaged or cut off: {one_line(error)}") from error


def _read_parquet(file: LocalFile, columns: Sequence[str]) -> Iterator[Record]:
    number = 0
    with _naming(file) as naming:
        try:
            with pyarrow.parquet.ParquetFile(file.path) as table:
                for batch in table.iter_batches(BATCH_ROWS, columns=list(columns)):
                    lists = [_nested(batch, name).to_pylist() for name in columns]
                    for values in zip(*lists, strict=True):
                        number += 1
                        yield Record(number, dict(zip(columns, values, strict=True)))
        except (pyarrow.ArrowException, OSError, ValueError):
            naming.where = f"after row {number}{_damaged_column(file.path, columns)}"
            raise


def _damaged_column(path: Path, columns: Sequence[str]) -> str:
    """`, column NAME` for the first column that cannot be read by itself; nothing where that cannot be told."""
    for name in columns:
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                for batch in table.iter_batches(BATCH_ROWS, columns=[name]):
                    _nested(batch, name).to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError):
            return f", column {name}"
    return ""


def _read_jsonl(file: LocalFile) -> Iterator[Record]:
    with _naming(file), file.path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            record = _parse_line(number, line)
            if record.fault and not line.endswith(b"\n"):
                raise DataError(f"{file.name}: line {number}: the file is cut off in the middle of this line")
            yield record


def _parse_line(number: int, line: bytes) -> Record:
    try:
        entry = json.loads(line)
    except UnicodeDecodeError as error:
        return Record(number, fault=f"is not UTF-8 ({error.reason})")
    except json.JSONDecodeError as error:
        return Record(number, fault=f"is not JSON ({error.msg} at character {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of too many digits, nesting without end
        return Record(number, fault=f"is not JSON ({one_line(error)})")
    if not isinstance(entry, dict):
        return Record(number, fault=f"is a JSON {type(entry).__name__}, not an object")
    return Record(number, _flatten(entry))


def _read_csv(file: LocalFile) -> Iterator[Record]:
    with _naming(file) as naming, _open_csv(file.path) as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader, [])
        while True:
            number = reader.line_num + 1
            naming.where = f"line {number}"
            cells = next(reader, None)
            if cells is None:
                return
            if len(cells) == len(header):
                yield Record(number, dict(zip(header, cells, strict=True)))
            elif cells:
                yield Record(number, fault=f"has {len(cells)} fields, the header {len(header)}")


def _open_csv(path: Path) -> Any:
    csv.field_size_limit(MAX_FIELD)
    return path.open(encoding="utf-8-sig", newline="")


def _flatten(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _leaves(fields: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    for entry in fields:
        nested = pyarrow.types.is_struct(entry.type)
        names += _leaves(entry.type, f"{prefix}{entry.name}.") if nested else [prefix + entry.name]
    return names


def _nested(batch: pyarrow.RecordBatch, name: str) -> pyarrow.Array:
    """The column ``name``, which may lie inside structs."""
    if name in batch.schema.names:
        return batch.column(name)
    top, *path = name.split(".")
    return pyarrow.compute.struct_field(batch.column(top), path)


def _only_data_file(names: Sequence[str], source: Source) -> str:
    data = [name for name in names if name.endswith(ENDINGS)]
    if len(data) == 1 or source.file:
        return source.file or data[0]
    raise DataError(f"{source.place}: has {len(data)} data files ({', '.join(data)}): choose one with --file")


def _check_ending(name: str) -> None:
    if not name.endswith(ENDINGS):
        raise DataError(f"{name}: unknown format: give a file that ends in {', '.join(ENDINGS)}")


def _commit_of(path: Path) -> str:
    """The hub cache keeps files under snapshots/<commit>/."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""
