"""verl's data files as problems: parquet or JSON lines with data_source, prompt and reward_model."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cppo_verl import jsonlines
from cppo_verl.evaluation import EvaluationError

REQUIRED = ("data_source", "prompt", "reward_model")
MEDIA = ("images", "videos", "audios")
SINGLE_TURN = "single_turn_agent"


@dataclass(frozen=True)
class Problem:
    """One row, its values as the file has them. ``row`` counts over all files, ``number`` within the data source, both
    from 0; ``place`` is the file and its own row, for messages."""

    row: int
    number: int
    data_source: str
    messages: list[dict[str, Any]]
    ground_truth: Any
    extra_info: dict[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def identity(self) -> str:
        """Equal for rows that repeat one problem (same source, same messages): their samples are one cluster."""
        return json.dumps([self.data_source, self.messages], sort_keys=True, default=str)


def read(files: Sequence[Path]) -> list[Problem]:
    """All rows of all files, in order; an EvaluationError for a file or row that holds no text chat problem."""
    problems: list[Problem] = []
    counts: Counter[str] = Counter()
    for file in files:
        for line, row in enumerate(_rows(file), start=1):
            place = f"{file}, row {line}"
            _check(row, place)
            source, truth = row["data_source"], row["reward_model"]["ground_truth"]
            extra_info = row.get("extra_info") or {}
            problems.append(Problem(len(problems), counts[source], source, row["prompt"], truth, extra_info, place))
            counts[source] += 1
    if not problems:
        raise EvaluationError(f"no rows in {', '.join(map(str, files))}: give files with problems in --data")
    return problems


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _rows(file: Path) -> list[Any]:
    if not file.is_file():
        raise EvaluationError(f"data file {file} does not exist: give verl parquet or jsonl files in --data")
    if file.suffix == ".parquet":
        try:
            return pyarrow.parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise EvaluationError(f"data file {file} cannot be read: {error}") from None
    if file.suffix != ".jsonl":
        raise EvaluationError(f"data file {file}: the name must end in .parquet or .jsonl")
    rows, torn = jsonlines.read(file)
    if torn:  # a benchmark less a problem is another benchmark
        raise EvaluationError(f"{torn.removesuffix(' and left out')}: copy the file again")
    return rows


def _check(row: Any, place: str) -> None:
    missing = [name for name in REQUIRED if name not in row] if isinstance(row, dict) else list(REQUIRED)
    if missing:
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise EvaluationError(f"{place}: has no column {', '.join(missing)}; it has {found}. verl's columns are needed")
    if not isinstance(row["data_source"], str):
        raise EvaluationError(f"{place}: data_source is {row['data_source']!r}: give the name of a benchmark")
    messages = row["prompt"]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise EvaluationError(f"{place}: prompt is no list of chat messages with role and content")
    if not isinstance(row["reward_model"], dict) or "ground_truth" not in row["reward_model"]:
        raise EvaluationError(f"{place}: reward_model has no ground_truth")
    if not isinstance(row.get("extra_info") or {}, dict):
        raise EvaluationError(f"{place}: extra_info is {type(row['extra_info']).__name__}, no mapping as verl has it")
    if media := [name for name in MEDIA if row.get(name)]:
        raise EvaluationError(f"{place}: has {', '.join(media)}; only text problems can be evaluated")
    if row.get("agent_name") not in (None, SINGLE_TURN):
        raise EvaluationError(f"{place}: agent_name is {row['agent_name']!r}; only {SINGLE_TURN} can be evaluated")
