"""The steps of a run that a question is put to, with what has to be said about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cppo_verl.recording import batches, files
from cppo_verl.recording.batches import Batch
from cppo_verl.recording.record import Header, RecordError

SEVERAL = 4


@dataclass(frozen=True)
class Selection:
    """Recorded steps as batches.

    Attributes:
        batches: of all looks. header: of the first step. scope: which steps, in words. notes: sentences.
    """

    batches: list[Batch]
    header: Header
    scope: str
    notes: Sequence[str] = ()

    @property
    def has_top_k(self) -> bool:
        """Whether every response has mu's top-K."""
        return all(response.top_k_mu is not None for part in self.batches for response in part.responses)


def select(run_dir: Path, span: tuple[int, int] | None = None) -> Selection:
    """The records of a run, or of its steps from ``span[0]`` to ``span[1]``. A damaged one is left out, with a note.

    Raises:
        RecordError: there is no record, none of these steps, or none that is whole.
    """
    found = files.require_steps(run_dir)
    wanted = [step for step in found if span is None or span[0] <= step <= span[1]]
    if not wanted:
        raise RecordError(files.no_such_step(run_dir, found, f"{span[0]} to {span[1]}" if span else ""))
    records, notes = [], []
    for step in wanted:
        try:
            records.append(files.read(found[step]))
        except RecordError as error:
            notes.append(f"{str(error).rstrip('.')}. Left out.")
    if not records:
        raise RecordError(notes[0].removesuffix(" Left out."))
    headers = [record.header for record in records]
    notes += _changes("rule or its knobs", headers, lambda h: (h.rule, *sorted(map(repr, h.knobs.items()))))
    notes += _changes("tokenizer", headers, lambda h: (h.tokenizer, h.vocabulary))
    steps = [header.step for header in headers]
    scope = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} recorded steps, {steps[0]} to {steps[-1]}"
    return Selection(batches.batches(records), headers[0], scope, notes)


def _changes(what: str, headers: Sequence[Header], key: Callable[[Header], Any]) -> list[str]:
    changed = [b.step for a, b in zip(headers[:-1], headers[1:], strict=True) if key(a) != key(b)]
    if len(changed) > SEVERAL:
        return [f"the {what} changed {len(changed)} times"]
    return [f"the {what} changed at step {', '.join(map(str, changed))}"] if changed else []
