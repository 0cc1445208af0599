"""What a stage is given, its setting, and what it leaves: a table of what was predicted, measured and judged."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cppo_verl.errors import UserError
from cppo_verl.reporting.text import plain

HOLDS, FAILS, NOT_RUN, NOTED = "holds", "fails", "not run here", "noted"
Value = float | int | str | None


class SelftestError(UserError):
    """The selftest, or a stage of it, cannot go on; the message says why."""

    status = 2


@dataclass
class Setting:
    """A stage's input.

    Attributes:
        out: the selftest's folder. device: ``cuda``, ``cpu`` (verl's CPU platform was asked for), or empty without one.
        room: what the machine has of the needs of assets/stages.yaml; on the CPU without ``GB a GPU``.
        steps: of the runs of the tiny model.
        stage, options: name and options of the stage at hand.
    """

    out: Path
    device: str
    room: Mapping[str, float]
    steps: int = 4
    stage: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = Path(self.out)  # a text, as it comes to another process

    @property
    def on_cpu(self) -> bool:  # the CPU stands in for GPUs, with everything in miniature
        return self.device != "cuda"

    @property
    def tiny(self) -> Path:  # folders ``model`` and ``data``
        return self.out / "tiny"

    @property
    def logs(self) -> Path:  # of the stage, and its rows
        return self.out / "stages" / self.stage

    @property
    def run(self) -> Path:  # run directory of the stage
        return self.out / "runs" / self.stage


@dataclass(frozen=True)
class Row:
    """One line: HOLDS, FAILS or NOTED (shown, not judged). Numbers are in ``unit``; ``note`` is a reader's why."""

    what: str
    verdict: str
    measured: Value
    predicted: Value = None
    limit: Value = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What a stage left: HOLDS, FAILS or NOT_RUN, its rows, seconds, and why it was not run or what ended it."""

    stage: str
    verdict: str
    rows: Sequence[Row] = ()
    seconds: float = 0.0
    reason: str = ""


class Table:
    """A stage's rows. ``path`` gets each at once, a line of JSON, so that a stage that dies leaves what it measured."""

    def __init__(self, path: Path):
        self.path, self.rows = path, list[Row]()

    def at_most(self, what: str, measured: float, limit: float, predicted: Value = None, **more: str) -> None:
        """A number, of which more is in ``unit`` and ``note``, that must not be above ``limit``; NaN is."""
        self._add(Row(what, HOLDS if measured <= limit else FAILS, measured, predicted, limit, **more))

    def equal(self, what: str, measured: Value, expected: Value, note: str = "") -> None:
        """Something that must be just what was predicted."""
        self._add(Row(what, HOLDS if measured == expected else FAILS, measured, expected, note=note))

    def noted(self, what: str, measured: Value, note: str) -> None:
        """Something to look at."""
        self._add(Row(what, NOTED, measured, note=note))

    def broke(self, what: str, error: BaseException) -> None:
        """A test that raised; the same error, of what several tests stand on, is one row."""
        note = f"{type(error).__name__}: {error}".splitlines()[0]
        if note not in [row.note for row in self.rows]:
            self._add(Row(what, FAILS, "an error", note=note))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)
        # JSON has no NaN and no infinity
        values = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def show(value: Value, unit: str = "") -> str:
    """A value for a reader: three significant digits, whole numbers in full, yes or no, its unit behind it."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{f'{value:,}' if isinstance(value, int) else plain(value)} {unit}".rstrip()
