"""verl's data files as problems: parquet or JSON lines with data_source, prompt and reward_model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.json
import pyarrow.parquet

from cppo_verl.evaluation import EvaluationError

REQUIRED = ("data_source", "prompt", "reward_model")
MEDIA = ("images", "videos", "audios")
SINGLE_TURN = "single_turn_agent"


@dataclass(frozen=True)
class Problem:
    """One row. ``row`` counts over all files, ``number`` within the data source, both from 0.

    ``identity`` is equal for rows that repeat one problem (same source, same messages): their samples are one cluster.
    """

    row: int
    number: int
    data_source: str
    messages: list[dict[str, Any]]
    ground_truth: Any
    extra_info: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        return json.dumps([self.data_source, self.messages], sort_keys=True, default=str)


def read(files: Sequence[Path]) -> list[Problem]:
    """All rows of all files, in order.

    Raises:
        EvaluationError: a missing or unreadable file, missing columns, a row that is no text chat problem.
    """
    problems: list[Problem] = []
    counts: dict[str, int] = {}
    for file in files:
        for line, row in enumerate(_rows(file), start=1):
            source = row["data_source"]
            _check(row, f"{file}, row {line}")
            problems.append(
                Problem(
                    row=len(problems),
                    number=counts.get(source, 0),
                    data_source=source,
                    messages=row["prompt"],
                    ground_truth=row["reward_model"]["ground_truth"],
                    extra_info=row.get("extra_info") or {},
                )
            )
            counts[source] = counts.get(source, 0) + 1
    if not problems:
        raise EvaluationError(f"no rows in {', '.join(map(str, files))}: give files with problems in --data")
    return problems


def sha256(file: Path) -> str:
    """Hexadecimal sha256 of the file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise EvaluationError(f"data file {file} does not exist: give verl parquet or jsonl files in --data")
    readers = {".parquet": pyarrow.parquet.read_table, ".jsonl": pyarrow.json.read_json}
    if file.suffix not in readers:
        raise EvaluationError(f"data file {file}: the name must end in {' or '.join(readers)}")
    try:
        table = readers[file.suffix](file)
    except (pyarrow.ArrowException, OSError) as error:
        raise EvaluationError(f"data file {file} cannot be read: {error}") from None
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise EvaluationError(
            f"data file {file} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}. "
            f"verl's columns {', '.join(REQUIRED)} are needed"
        )
    return table.to_pylist()


def _check(row: dict[str, Any], place: str) -> None:
    if not isinstance(row["data_source"], str):
        raise EvaluationError(f"{place}: data_source is {row['data_source']!r}: give the name of a benchmark")
    messages = row["prompt"]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise EvaluationError(f"{place}: prompt is no list of chat messages with role and content")
    if not isinstance(row["reward_model"], dict) or "ground_truth" not in row["reward_model"]:
        raise EvaluationError(f"{place}: reward_model has no ground_truth")
    media = [name for name in MEDIA if row.get(name)]
    if media:
        raise EvaluationError(f"{place}: has {', '.join(media)}; only text problems can be evaluated")
    if row.get("agent_name") not in (None, SINGLE_TURN):
        raise EvaluationError(f"{place}: agent_name is {row['agent_name']!r}; only {SINGLE_TURN} can be evaluated")
