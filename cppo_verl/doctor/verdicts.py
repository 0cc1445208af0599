"""What a check is asked about, and how it ends: with a line, or by raising one of three verdicts."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

OK, NOTE, SKIP, FAIL = "ok", "note", "--", "FAIL"
GB = 1e9


class Verdict(Exception):
    """A check that did not end well; the message says what was found and what to do."""

    verdict = FAIL


class Trouble(Verdict):
    """What a run would not survive."""


class Note(Verdict):
    """What a run survives, but its owner should know."""

    verdict = NOTE


class Skip(Verdict):
    """What cannot be looked at here, and why."""

    verdict = SKIP


class Finding(NamedTuple):
    """One check: its title, its verdict, and what it says (further lines are details of a failure)."""

    title: str
    verdict: str
    text: str


def default_run_dir() -> Path:
    """Where a run started here would write."""
    return Path(os.environ.get("RUN") or os.environ.get("WORK") or "runs").absolute()


@dataclass(frozen=True)
class Asked:
    """The run that is meant; without ``--recipe`` verl's defaults.

    ``config`` is verl's composed config of the recipe, ``problem`` what was said instead of one. Checkpoints of
    ``checkpoint_bytes`` lie below ``run_dir``.
    """

    model: str | None = None
    recipe: str | None = None
    config: Any = None
    problem: str = ""
    checkpoint_bytes: float | None = None
    run_dir: Path = field(default_factory=default_run_dir)
