"""verl's data files as problems: parquet or JSON lines with data_source, prompt and reward_model."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet

from cppo_verl import jsonlines
from cppo_verl.evaluation import EvaluationError

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
            source, messages, truth, extra_info = _columns(row, place)
            problems.append(Problem(len(problems), counts[source], source, messages, truth, extra_info, place))
            counts[source] += 1
    if not problems:
        raise EvaluationError(f"no rows in {', '.join(map(str, files))}: give files with problems in --data")
    return problems


def _rows(file: Path) -> list[Any]:
    if not file.is_file() or file.suffix not in (".parquet", ".jsonl"):
        raise EvaluationError(f"data file {file} is not there, or none: give verl's .parquet or .jsonl files in --data")
    if file.suffix == ".parquet":
        try:
            return pyarrow.parquet.read_table(file).to_pylist()
        except pyarrow.ArrowException as error:
            raise EvaluationError(f"data file {file} cannot be read: {error}") from None
    rows, torn = jsonlines.read(file)
    if torn:  # a benchmark less a problem is another benchmark
        raise EvaluationError(f"{torn.removesuffix(' and left out')}: copy the file again")
    return rows


def _columns(row: Any, place: str) -> tuple[str, list[dict[str, Any]], Any, dict[str, Any]]:
    """Data source, messages, ground truth and extra_info of a row."""
    try:
        messages, truth = list(row["prompt"]), row["reward_model"]["ground_truth"]
        found = row["data_source"], messages, truth, dict(row.get("extra_info") or {})
        whole = isinstance(found[0], str) and messages and all("role" in message for message in messages)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise EvaluationError(
            f"{place}: is no row of verl's, with a data_source, a prompt (messages with role and content), a "
            f"reward_model with a ground_truth and perhaps extra_info: {str(row)[:200]}"
        )
    if media := [name for name in MEDIA if row.get(name)]:
        raise EvaluationError(f"{place}: has {', '.join(media)}; only text problems can be evaluated")
    if row.get("agent_name") not in (None, SINGLE_TURN):
        raise EvaluationError(f"{place}: agent_name is {row['agent_name']!r}; only {SINGLE_TURN} can be evaluated")
    return found
