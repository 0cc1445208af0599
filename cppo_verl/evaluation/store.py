"""Responses on disk, part by part, so that an evaluation that was stopped, or killed, goes on where it was.

OUT/settings.json says what the responses depend on; OUT/parts/part-NNNNN.parquet hold all samples of some problems
each. Every file appears whole or not at all.
"""

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas

from cppo_verl import atomic
from cppo_verl.evaluation import EvaluationError


@dataclass(frozen=True)
class Response:
    """One sample: problem ``row``, ``sample`` 0..n-1, text without special tokens, length in tokens, why it ended."""

    row: int
    sample: int
    text: str
    tokens: int
    finish_reason: str


def writable(text: str) -> str:
    """Text that files can hold: half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Store:
    """The responses of one evaluation; a context manager that keeps a second one out of the folder.

    Raises:
        EvaluationError: the folder is in use, or was made with other settings (and ``fresh`` is not given).
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], fresh: bool = False):
        self.out, self.parts, self.settings, self.fresh = out, out / "parts", json.loads(json.dumps(settings)), fresh

    def __enter__(self) -> "Store":
        self.parts.mkdir(parents=True, exist_ok=True)
        self.lock = (self.out / ".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._agree()
        except BlockingIOError:
            self.lock.close()
            raise EvaluationError(f"{self.out} is in use by another evaluation; wait, or give another --out") from None
        except BaseException:
            self.lock.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.lock.close()

    def append(self, responses: Sequence[Response]) -> None:
        """Save responses as a part of their own."""
        files = self._files()
        number = int(files[-1].stem.removeprefix("part-")) + 1 if files else 0
        table = pandas.DataFrame([asdict(response) for response in responses])
        with atomic.replacing(self.parts / f"part-{number:05d}.parquet") as part:
            table.to_parquet(part, index=False)

    def responses(self) -> list[Response]:
        """All saved responses, by row and sample."""
        saved: list[Response] = []
        for file in self._files():
            try:
                saved += [Response(**row) for row in pandas.read_parquet(file).to_dict("records")]  # type: ignore[misc]
            except (OSError, ValueError) as error:
                remedy = "delete it, and its problems are done again"
                raise EvaluationError(f"{file} cannot be read ({error}): {remedy}") from None
        return sorted(saved, key=lambda response: (response.row, response.sample))

    def _agree(self) -> None:
        file = self.out / "settings.json"
        for leftover in self.parts.glob(".*.tmp"):
            leftover.unlink()
        before = json.loads(file.read_text()) if file.is_file() else None
        if self.fresh or before is None:
            for part in self._files():
                part.unlink()
        elif before != self.settings:
            raise EvaluationError(
                f"{self.out} holds responses made with other settings ({_changes(before, self.settings)}): give "
                "another --out, or --fresh to throw them away and start anew"
            )
        atomic.write(file, json.dumps(self.settings, indent=2, sort_keys=True) + "\n")

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    old, new = ([json.dumps(of.get(key))[:60] for key in keys] for of in (before, after))
    return "; ".join(f"{key}: {x} before, {y} now" for key, x, y in zip(keys, old, new, strict=True))
