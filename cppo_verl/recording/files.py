"""Records on the disk: ``RUN/records/step-00000012.parquet``, a row a response, each file whole or not there.

The columns are ``step``, the fields of ``record.Response`` under their names, those of its first ``Look``, and those
of its last one as ``last_update`` and so on, null where the first was the last. What has an entry a token is
a list. Null also says: ``mask``, every token is the policy's own; ``advantages``, every one of these has the number in
``advantage``. ``top_k_mu`` is binary, little-endian int16.

The fields of ``record.Header`` and the version of this format lie in the schema's metadata, as JSON under the key
``cppo_verl``. A token takes about 13 bytes beside its text (a second look adds 5, a soft gate 4), the top-K apart.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from cppo_verl import atomic
from cppo_verl.recording.record import Header, Look, RecordError, Response, StepRecord

FOLDER = "records"
FORMAT = 1
KEY = b"cppo_verl"
NAME = re.compile(r"step-([0-9]{8,})\.parquet")

_RESPONSE = {each.name: each.metadata for each in dataclasses.fields(Response) if each.metadata}
_LOOK = {each.name: each.metadata for each in dataclasses.fields(Look)}
LAYOUT: dict[str, Mapping[str, Any]] = {
    "step": {"kind": "int32", "list": False},
    **_RESPONSE,
    "advantage": {"kind": "float32", "list": False},
    **_LOOK,
    **{f"last_{name}": said for name, said in _LOOK.items()},
}
SCHEMA = pyarrow.schema(
    {
        name: pyarrow.list_(pyarrow.type_for_alias(said["kind"])) if said["list"] else said["kind"]
        for name, said in LAYOUT.items()
    }
)
_REPEATING = {"gate", "last_gate", "advantages"}  # of the floats; the bytes of all others compress better apart
_APART = {n for n, said in LAYOUT.items() if said["list"] and said["kind"] == "float32"} - _REPEATING


def path_of(run_dir: Path, step: int) -> Path:
    """Where a step's record lies."""
    return run_dir / FOLDER / f"step-{step:08d}.parquet"


def steps(run_dir: Path) -> dict[int, Path]:
    """The record files of a run by step, ascending; empty for a run without any."""
    folder = run_dir / FOLDER
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def write(run_dir: Path, record: StepRecord) -> Path:
    """Write a step's record, whole or not at all, over one of the same step; its path."""
    path = path_of(run_dir, record.header.step)
    rows = [_row(record.header.step, response) for response in record.responses]
    said = {"format": FORMAT, **dataclasses.asdict(record.header)}
    schema = SCHEMA.with_metadata({KEY: json.dumps(said).encode()})
    columns = [pyarrow.array([row[each.name] for row in rows], each.type) for each in schema]
    leaves = {name: f"{name}.list.element" if said["list"] else name for name, said in LAYOUT.items()}
    with atomic.replacing(path) as beside:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_arrays(columns, schema=schema),
            beside,
            compression="zstd",
            use_dictionary=[leaf for name, leaf in leaves.items() if name not in _APART],
            use_byte_stream_split=[leaf for name, leaf in leaves.items() if name in _APART],
        )
    return path


def _row(step: int, response: Response) -> dict[str, Any]:
    row = {"step": step, **{name: getattr(response, name) for name in _RESPONSE}}
    row |= {name: getattr(response.first, name) for name in _LOOK}
    row |= {f"last_{name}": getattr(response.last, name, None) for name in _LOOK}
    advantages = response.advantages[response.mask]
    row["advantage"] = None
    if (advantages == advantages[:1]).all():
        row |= {"advantage": advantages[0] if len(advantages) else 0.0, "advantages": None}
    if response.mask.all():
        row["mask"] = None
    if response.top_k_mu is not None:
        row["top_k_mu"] = response.top_k_mu.astype("<i2").tobytes()
    return {name: _as(value, LAYOUT[name]) for name, value in row.items()}


def _as(value: Any, said: Mapping[str, Any]) -> Any:
    return value if value is None or not said["list"] or said["kind"] == "string" else np.asarray(value, said["kind"])


def read_header(path: Path) -> Header:
    """What holds for the whole step, without reading a response.

    Raises:
        RecordError: the file is damaged, no record, or of a later format.
    """
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    try:
        said = json.loads(metadata[KEY])
        version = int(said.pop("format"))
        known = {each.name for each in dataclasses.fields(Header)}
        header = Header(**{name: value for name, value in said.items() if name in known})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} was not written by cppo_verl: it has no header of a record.") from error
    if version > FORMAT:
        raise RecordError(
            f"{path} has format {version}, written by cppo_verl {header.version}; this one reads up to {FORMAT}: "
            "update cppo_verl."
        )
    return header


def read(path: Path) -> StepRecord:
    """A step's record.

    Raises:
        RecordError: the file is missing, damaged, no record, or of a later format.
    """
    header = read_header(path)
    try:
        table = pyarrow.parquet.read_table(path)
        columns = [_values(table[name].combine_chunks()) for name in LAYOUT]
        rows = (dict(zip(LAYOUT, values, strict=True)) for values in zip(*columns, strict=True))
        return StepRecord(header, tuple(map(_response, rows)))
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_run(run_dir: Path, wanted: Sequence[int] | None = None) -> Iterator[StepRecord]:
    """The records of a run in the order of their steps; of the ``wanted`` steps only, where given.

    Raises:
        RecordError: there is none, a wanted step is not among them, or one cannot be read.
    """
    found = require_steps(run_dir)
    for step in found if wanted is None else wanted:
        if step not in found:
            raise RecordError(no_such_step(run_dir, found, str(step)))
        yield read(found[step])


def require_steps(run_dir: Path) -> dict[int, Path]:
    """``steps`` of a run that has some.

    Raises:
        RecordError: it has none.
    """
    found = steps(run_dir)
    if not found:
        raise RecordError(
            f"{run_dir / FOLDER} holds no record: run with trainer.v1.trust_region.record=16 (responses a step)."
        )
    return found


def no_such_step(run_dir: Path, found: dict[int, Path], wanted: str) -> str:
    """The sentence for a step that is not recorded."""
    return (
        f"{run_dir / FOLDER} has no record of step {wanted}; it has {len(found)} of steps {min(found)} to {max(found)}."
    )


def _damaged(path: Path, error: Exception) -> RecordError:
    said = " ".join(str(error).split())[:200]
    return RecordError(f"{path} is no whole record ({said}); delete it, or copy it again.")


def _values(column: pyarrow.Array) -> list[Any]:
    """Rows of a column: numpy views for lists of numbers, Python values for the rest; None for null."""
    kind = column.type
    if not pyarrow.types.is_list(kind) or pyarrow.types.is_string(kind.value_type):
        return column.to_pylist()
    values, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [values[a:b] if ok else None for a, b, ok in zip(ends[:-1], ends[1:], valid, strict=True)]


def _response(row: dict[str, Any]) -> Response:
    own = {name: row[name] for name in _RESPONSE}
    length = len(row["token_ids"])
    if own["mask"] is None:
        own["mask"] = np.ones(length, dtype=bool)
    if own["advantages"] is None:
        own["advantages"] = np.full(length, row["advantage"], np.float32)
    if own["top_k_mu"] is not None:
        own["top_k_mu"] = np.frombuffer(own["top_k_mu"], dtype="<i2")
    first, last = ({name: row[prefix + name] for name in _LOOK} for prefix in ("", "last_"))
    return Response(**own, first=Look(**first), last=None if last["log_pi"] is None else Look(**last))
