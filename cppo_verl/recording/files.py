"""Records on the disk: ``RUN/records/step-00000012.parquet``, a row a response, each file whole or not there.

The columns are ``step``, the fields of ``record.Response`` under their names, those of its first ``Look``, and those
of its last one as ``last_update`` and so on, null where the first was the last. What has an entry a token is a list.

The fields of ``record.Header`` and the version of this format lie in the schema's metadata, as JSON under the key
``cppo_verl``. A token takes about 13 bytes beside its text; a second look adds 5, a soft gate 4.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cppo_verl import atomic
from cppo_verl.recording.record import Header, Look, RecordError, Response, StepRecord

FOLDER = "records"
FORMAT = 2
KEY = b"cppo_verl"
NAME = re.compile(r"step-([0-9]{8,})\.parquet")
STEPS = re.compile(r"([0-9]+)|([0-9]*)[-:]([0-9]*)(?::([1-9][0-9]*))?")

_RESPONSE = {each.name: each.metadata["column"] for each in dataclasses.fields(Response) if each.metadata}
_LOOK = {each.name: each.metadata["column"] for each in dataclasses.fields(Look)}
_LAST = {f"last_{name}": column for name, column in _LOOK.items()}
SCHEMA = pyarrow.schema({"step": pyarrow.int32(), **_RESPONSE, **_LOOK, **_LAST})


def path_of(run_dir: Path, step: int) -> Path:
    """Where a step's record lies."""
    return run_dir / FOLDER / f"step-{step:08d}.parquet"


def steps(run_dir: Path) -> dict[int, Path]:
    """The record files of a run by step, ascending; empty for a run without any."""
    folder = run_dir / FOLDER
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def chosen_steps(run_dir: Path, text: str | None = None) -> list[int]:
    """The recorded steps that ``--steps`` means: ``12``, ``5-20`` or ``5:20``, ``5:``, ``5:60:3`` (every third one).
    RecordError: another form, or none of these steps is recorded."""
    recorded = list(steps(run_dir))
    if not recorded:
        remedy = "run with trainer.v1.trust_region.record=16 (responses a step)"
        raise RecordError(f"{run_dir / FOLDER} holds no record: {remedy}.")
    if text is None:
        return recorded
    parts = STEPS.fullmatch(text)
    if parts is None or not text.strip("-:"):
        raise RecordError(f"--steps {text}: not FIRST:LAST[:EVERY] in whole numbers, as in 10:60:3 or 12.")
    one, first, last, every = parts.groups()
    low, high = int(one or first or recorded[0]), int(one or last or recorded[-1])
    found = [step for step in recorded if low <= step <= high][:: int(every or 1)]
    if not found:
        there = f"they are {recorded[0]} to {recorded[-1]}"
        raise RecordError(f"--steps {text}: no recorded step is among them; {there} ({run_dir}).")
    return found


def write(run_dir: Path, record: StepRecord) -> Path:
    """Write a step's record, whole or not at all, over one of the same step; its path."""
    path = path_of(run_dir, record.header.step)
    rows = [_row(record.header.step, response) for response in record.responses]
    said = {"format": FORMAT, **dataclasses.asdict(record.header)}
    schema = SCHEMA.with_metadata({KEY: json.dumps(said).encode()})
    table = pyarrow.Table.from_pylist(rows, schema)
    with atomic.replacing(path) as beside, beside.open("wb") as stream:
        pyarrow.parquet.write_table(table, stream, compression="zstd", use_dictionary=["pieces.list.element"])
    return path


def _row(step: int, response: Response) -> dict[str, Any]:
    row = {"step": step, **{name: getattr(response, name) for name in _RESPONSE}}
    for prefix, look in (("", response.first), ("last_", response.last)):
        row |= {prefix + name: getattr(look, name, None) for name in _LOOK}
    return row


def read(path: Path) -> StepRecord:
    """A step's record. RecordError: the file is missing, damaged, no record, or of a later format."""
    try:
        with path.open("rb") as stream:  # pyarrow takes no path that is not UTF-8
            table = pyarrow.parquet.read_table(stream)
        said = json.loads(table.schema.metadata[KEY])
        if (version := said.pop("format")) > FORMAT:
            by = f"{path} has format {version}, written by cppo_verl {said['version']}"
            raise RecordError(f"{by}; this one reads up to {FORMAT}: update cppo_verl.")
        if version < FORMAT:
            raise RecordError(f"{path} has format {version}, an earlier one; this version reads {FORMAT}.")
        rows = table.to_pandas(integer_object_nulls=True).to_dict("records")
        return StepRecord(Header(**said), tuple(map(_response, rows)))
    except RecordError:
        raise
    except (pyarrow.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise RecordError(f"{path} is no whole record ({what}); delete it, or copy it again.") from error


def _response(row: dict[str, Any]) -> Response:
    own = {name: row[name] for name in _RESPONSE}
    own["pieces"] = own["pieces"].tolist()
    first, last = ({name: row[prefix + name] for name in _LOOK} for prefix in ("", "last_"))
    return Response(**own, first=Look(**first), last=None if last["log_pi"] is None else Look(**last))


def read_run(run_dir: Path, wanted: Sequence[int] = (), notes: list[str] | None = None) -> Iterator[StepRecord]:
    """The records of a run in the order of their steps, or of the ``wanted`` steps. One that is damaged is left out,
    with a sentence in ``notes``. RecordError: there is none that is whole; without ``notes``, one is damaged."""
    damaged, wanted = [], wanted or chosen_steps(run_dir)
    for step in wanted:
        try:
            yield read(path_of(run_dir, step))
        except RecordError as error:
            damaged.append(error)
            if notes is None or len(damaged) == len(wanted):
                raise
            notes.append(f"step {step} is left out: {error}")
