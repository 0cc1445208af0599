"""Records on the disk: ``RUN/records/step-00000012.parquet``, a row a response, each file whole or not there.

Columns (list columns have an entry a token of the response; null where it says so):

    step                 int32
    uid                  string         prompt of the group
    sample, output       int32
    prompt               string
    prompt_ids           list<int32>
    pieces               list<string>   text of each token
    token_ids            list<int32>
    mask                 list<bool>     null: every token is the policy's own
    log_mu               list<float32>  nats, at the sampling temperature
    log_rollout          list<float32>  null: ``log_mu`` is the policy that sampled (``anchor=rollout``)
    advantage            float32        null: it differs from token to token, see
    advantages           list<float32>  null: ``advantage`` holds for every token
    reward               float64
    versions_behind      int32          null: not known
    width                int32
    top_k_mu             binary         little-endian int16 words of ``trust_region.topk.pack``; null: no top-K
    update               int32          null: not known
    log_pi               list<float32>
    gate                 list<float32>
    cause                list<int8>     codes of ``record.CAUSES``
    divergence           list<float32>  null: binary estimator
    top_k_log_pi         list<float32>  one an entry of the top-K, not a token; null: no top-K
    last_update ... last_top_k_log_pi   the same six at the last update that saw the response; null: it was the first

The fields of ``record.Header`` and the version of this format lie in the schema's metadata, as JSON under the key
``cppo_verl``. A token takes about 13 bytes beside its text (a second look adds 5, a soft gate 4), the top-K apart.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
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

_FLOATS, _STRINGS = pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.string())
_LOOK = {
    "update": pyarrow.int32(),
    "log_pi": _FLOATS,
    "gate": _FLOATS,
    "cause": pyarrow.list_(pyarrow.int8()),
    "divergence": _FLOATS,
    "top_k_log_pi": _FLOATS,
}
_LAST = {f"last_{name}": kind for name, kind in _LOOK.items()}
SCHEMA = pyarrow.schema(
    {
        "step": pyarrow.int32(),
        "uid": pyarrow.string(),
        "sample": pyarrow.int32(),
        "output": pyarrow.int32(),
        "prompt": pyarrow.string(),
        "prompt_ids": pyarrow.list_(pyarrow.int32()),
        "pieces": _STRINGS,
        "token_ids": pyarrow.list_(pyarrow.int32()),
        "mask": pyarrow.list_(pyarrow.bool_()),
        "log_mu": _FLOATS,
        "log_rollout": _FLOATS,
        "advantage": pyarrow.float32(),
        "advantages": _FLOATS,
        "reward": pyarrow.float64(),
        "versions_behind": pyarrow.int32(),
        "width": pyarrow.int32(),
        "top_k_mu": pyarrow.binary(),
        **_LOOK,
        **_LAST,
    }
)
_PER_LOOK = ("log_pi", "gate", "cause", "divergence")
_PER_TOKEN = (
    "pieces",
    "mask",
    "log_mu",
    "log_rollout",
    "advantages",
    *_PER_LOOK,
    *(f"last_{name}" for name in _PER_LOOK),
)
# Floats whose bytes compress better apart; everything else repeats itself
_SPLIT = (
    "log_mu",
    "log_rollout",
    "log_pi",
    "divergence",
    "top_k_log_pi",
    "last_log_pi",
    "last_divergence",
    "last_top_k_log_pi",
)


def path_of(run_dir: Path, step: int) -> Path:
    """Where a step's record lies."""
    return run_dir / FOLDER / f"step-{step:08d}.parquet"


def steps(run_dir: Path) -> dict[int, Path]:
    """The record files of a run by step, ascending; empty for a run without any."""
    folder = run_dir / FOLDER
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def write(run_dir: Path, record: StepRecord) -> Path:
    """Write a step's record, whole or not at all, over one of the same step; its path.

    Raises:
        ValueError: an array of a response does not have its length.
    """
    path = path_of(run_dir, record.header.step)
    rows = [_row(record.header.step, response) for response in record.responses]
    said = {"format": FORMAT, **dataclasses.asdict(record.header)}
    schema = SCHEMA.with_metadata({KEY: json.dumps(said).encode()})
    columns = [pyarrow.array([row[field.name] for row in rows], field.type) for field in schema]
    table = pyarrow.Table.from_arrays(columns, schema=schema)
    split = [f"{name}.list.element" for name in _SPLIT]
    others = [name for name in _leaves(schema) if name not in split]
    with atomic.replacing(path) as beside:
        pyarrow.parquet.write_table(
            table, beside, compression="zstd", use_dictionary=others, use_byte_stream_split=split, store_schema=True
        )
    return path


def _leaves(schema: pyarrow.Schema) -> list[str]:
    return [f"{f.name}.list.element" if pyarrow.types.is_list(f.type) else f.name for f in schema]


def _row(step: int, response: Response) -> dict[str, Any]:
    length = response.length
    same = bool((response.advantages == response.advantages[:1]).all())
    row: dict[str, Any] = {
        "step": step,
        "uid": response.uid,
        "sample": response.sample,
        "output": response.output,
        "prompt": response.prompt,
        "prompt_ids": response.prompt_ids.astype(np.int32),
        "pieces": response.pieces,
        "token_ids": response.token_ids.astype(np.int32),
        "mask": None if response.mask.all() else response.mask.astype(bool),
        "log_mu": response.log_mu,
        "log_rollout": response.log_rollout,
        "advantage": response.advantages[0] if same and length else 0.0 if same else None,
        "advantages": None if same else response.advantages,
        "reward": response.reward,
        "versions_behind": response.versions_behind,
        "width": response.width,
        "top_k_mu": None if response.top_k_mu is None else response.top_k_mu.astype("<i2").tobytes(),
    }
    row |= {name: getattr(response.first, name) for name in _LOOK}
    row |= {f"last_{name}": None if response.last is None else getattr(response.last, name) for name in _LOOK}
    _check_lengths(row)
    return row


def _check_lengths(row: dict[str, Any]) -> None:
    """Raises ValueError for a column that does not have an entry a token."""
    length = len(row["token_ids"])
    for name in _PER_TOKEN:
        if row[name] is not None and len(row[name]) != length:
            raise ValueError(f"{row['uid']}: {name} has {len(row[name])} entries for {length} tokens")


def read_header(path: Path) -> Header:
    """What holds for the whole step, without reading a response.

    Raises:
        RecordError: the file is damaged, no record, or of a later format.
    """
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    return _header(path, metadata)


def read(path: Path) -> StepRecord:
    """A step's record.

    Raises:
        RecordError: the file is missing, damaged, no record, or of a later format.
    """
    try:
        table = pyarrow.parquet.read_table(path)
        header = _header(path, table.schema.metadata or {})
        columns = {name: _values(table[name].combine_chunks()) for name in SCHEMA.names}
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise _damaged(path, error) from error
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    try:
        return StepRecord(header, tuple(map(_response, rows)))
    except (TypeError, ValueError) as error:
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


def _header(path: Path, metadata: dict[bytes, bytes]) -> Header:
    try:
        said = json.loads(metadata[KEY])
        version = int(said.pop("format"))
        known = {field.name for field in dataclasses.fields(Header)}
        header = Header(**{name: value for name, value in said.items() if name in known})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} was not written by cppo_verl: it has no header of a record.") from error
    if version > FORMAT:
        raise RecordError(
            f"{path} has format {version}, written by cppo_verl {header.version}; this one reads up to {FORMAT}: "
            "update cppo_verl."
        )
    return header


def _values(column: pyarrow.Array) -> list[Any]:
    """Rows of a column: numpy views for lists of numbers, Python values for the rest; None for null."""
    kind = column.type
    if not pyarrow.types.is_list(kind) or pyarrow.types.is_string(kind.value_type):
        return column.to_pylist()
    values = column.values.to_numpy(zero_copy_only=False)
    ends = column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [values[a:b] if ok else None for a, b, ok in zip(ends[:-1], ends[1:], valid, strict=True)]


def _response(row: dict[str, Any]) -> Response:
    _check_lengths(row)
    length, advantages, mask = len(row["token_ids"]), row["advantages"], row["mask"]
    if advantages is None:
        advantages = np.full(length, row["advantage"], np.float32)
    return Response(
        uid=row["uid"],
        sample=row["sample"],
        output=row["output"],
        prompt=row["prompt"],
        prompt_ids=row["prompt_ids"],
        pieces=row["pieces"],
        token_ids=row["token_ids"],
        mask=np.ones(length, dtype=bool) if mask is None else mask,
        log_mu=row["log_mu"],
        log_rollout=row["log_rollout"],
        advantages=advantages,
        reward=row["reward"],
        versions_behind=row["versions_behind"],
        width=row["width"],
        top_k_mu=None if row["top_k_mu"] is None else np.frombuffer(row["top_k_mu"], dtype="<i2"),
        first=Look(**{name: row[name] for name in _LOOK}),
        last=None if row["last_log_pi"] is None else Look(**{name: row[f"last_{name}"] for name in _LOOK}),
    )
