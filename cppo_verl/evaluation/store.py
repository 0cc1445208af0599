"""Responses on disk, part by part, so that an evaluation that was stopped, or killed, goes on where it was.

OUT/settings.json says what the responses depend on; each file of OUT/parts holds all samples of some problems. Every
file appears whole or not at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas

from cppo_verl import atomic
from cppo_verl.evaluation import EvaluationError
from cppo_verl.launch import supervise


@dataclass(frozen=True)
class Response:
    """One sample: problem ``row``, ``sample`` 0..n-1, text without special tokens, length in tokens, why it ended."""

    row: int
    sample: int
    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Store:
    """The responses of one evaluation, in the folder ``out``."""

    out: Path

    @property
    def parts(self) -> list[Path]:
        return list((self.out / "parts").glob("*.parquet"))

    def append(self, responses: Sequence[Response]) -> None:
        """Save all responses of some problems as a part, which is named after the first."""
        table = pandas.DataFrame([asdict(response) for response in responses])
        with atomic.replacing(self.out / f"parts/from-{responses[0].row:05d}.parquet") as part:
            table.to_parquet(part, index=False)

    def responses(self) -> list[Response]:
        """All saved responses, by row and sample."""
        saved: list[Response] = []
        for file in self.parts:
            try:
                saved += [Response(**row) for row in pandas.read_parquet(file).to_dict("records")]  # type: ignore[misc]
            except (OSError, ValueError) as error:
                remedy = "delete it, and its problems are done again"
                raise EvaluationError(f"{file} cannot be read ({error}): {remedy}") from None
        return sorted(saved, key=lambda response: (response.row, response.sample))


@contextmanager
def opened(out: Path, settings: Mapping[str, Any], fresh: bool = False) -> Iterator[Store]:
    """The store of ``out`` for responses that depend on ``settings``, kept from any other evaluation meanwhile.

    Raises:
        AlreadyRunning: the folder is in use.
        EvaluationError: it has responses of other settings (and ``fresh`` is not given).
    """
    store, file, now = Store(out), out / "settings.json", json.loads(json.dumps(settings))
    with supervise.lock(out):
        (out / "parts").mkdir(exist_ok=True)
        before = json.loads(file.read_text()) if file.is_file() else {}
        if fresh or not before:
            for part in store.parts:
                part.unlink()
        elif store.parts and before != now:
            keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
            changes = "; ".join(
                f"{key}: {str(before.get(key))[:60]} before, {str(now.get(key))[:60]} now" for key in keys
            )
            raise EvaluationError(
                f"{out} holds responses made with other settings ({changes}): give another --out, or --fresh to throw "
                "them away and start anew"
            )
        for leftover in (out / "parts").glob(".*.tmp"):
            leftover.unlink()
        atomic.write(file, json.dumps(now, indent=2, sort_keys=True) + "\n")
        yield store
