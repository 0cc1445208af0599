"""How a check ends: with a line, or by raising one of three verdicts whose message is the line."""

from dataclasses import dataclass

OK, NOTE, SKIP, FAIL = "ok", "note", "--", "FAIL"


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


@dataclass(frozen=True)
class Finding:
    """One check: its title, its verdict, and what it says (further lines are details of a failure)."""

    title: str
    verdict: str
    text: str
