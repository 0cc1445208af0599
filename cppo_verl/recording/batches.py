"""Recorded responses as padded batches, and what a candidate decides on them; the rules' own functions throughout."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from cppo_verl.recording import files
from cppo_verl.recording.candidates import CLIPS, Candidate, recorded
from cppo_verl.recording.numbers import gate_and_cause, pad, padded
from cppo_verl.recording.record import Header, Look, RecordError, Response, StepRecord
from cppo_verl.trust_region import metrics
from cppo_verl.trust_region.rules import RULES, evaluate, observe_clipping
from cppo_verl.trust_region.tokens import Tokens

SEVERAL = 4  # steps that a note names
CELLS = 1 << 20  # rows x width of a batch, at most, for rows of up to that length
Row = tuple[Response, Look, int]


@dataclass
class Batch:
    """Looks of one header's setting, right-padded: each row is a response as one update saw it.

    Attributes:
        header: of the steps that the rows come from; steps of one setting share it.
        responses, looks: by row. groups: by row, a number for the group (prompt of a step), over the whole record.
        tokens: (rows, width) float32.
        counted: (rows, width) bool: tokens that metrics count, the policy's own in responses with an advantage and
            without a NaN.
    """

    header: Header
    responses: list[Response]
    looks: list[Look]
    groups: list[int]
    tokens: Tokens = field(init=False)
    counted: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = pad(self.responses, self.looks)
        bad = torch.stack(list(metrics.nonfinite(self.tokens).values())).any(0).any(-1, keepdim=True)
        self.counted = self.tokens.counted & ~bad

    @torch.no_grad()
    def decide(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """Gate (float32) and cause (int8) of every token, (rows, width). RecordError: as for ``divergence``."""
        if candidate.ran:
            candidate = recorded(self.header)
        if candidate.rule not in RULES:
            low, high, cap = (candidate.clips[name] for name in CLIPS)
            return gate_and_cause(self.tokens, observe_clipping(self.tokens, candidate.rule, low, high, cap), cap)
        verdict, _ = evaluate(candidate.rule, self.tokens, candidate.knobs, self.divergence(candidate))
        return gate_and_cause(self.tokens, verdict, candidate.knobs.ratio_cap)

    def divergence(self, candidate: Candidate) -> Tensor:
        """D_t as the candidate measures it, (rows, width) float32. RecordError: of its top-K it was not recorded."""
        kind = candidate.knobs.divergence
        if candidate.knobs.estimator != "topk":
            return self.tokens.divergence(kind)
        if not self.measures(candidate):
            said = f"run with policy_loss.estimator=topk and divergence={kind}, or choose a rule with estimator=binary."
            raise RecordError(f"{candidate.name} needs D_t of mu's top-K, which this record does not have: {said}")
        return padded([look.divergence for look in self.looks], self.tokens.mask.shape[1])

    def measures(self, candidate: Candidate) -> bool:
        """Whether the candidate's D_t follows from the log-probs, or is the top-K's that was recorded."""
        wanted = candidate.knobs.estimator, candidate.knobs.divergence
        return wanted[0] != "topk" or wanted == (self.header.knobs.get("estimator"), self.header.knobs["divergence"])


def taken(gate: Tensor) -> Tensor:
    """How much a gate takes of an update, 1 - gate and at most 1, float64; as the metrics count it."""
    return (1 - gate).double().clamp_max_(1.0)


def batches(records: Iterable[StepRecord]) -> list[Batch]:
    """All looks of the records, those of one setting together and rows of like length side by side."""
    settings: dict[str, tuple[Header, list[Row]]] = {}
    groups: dict[tuple[int, str], int] = {}
    for record in records:
        header = record.header
        setting = repr((header.rule, sorted(header.knobs.items()), header.clip_low, header.clip_high, header.clip_cap))
        _, rows = settings.setdefault(setting, (header, []))
        for response in record.responses:
            group = groups.setdefault((header.step, response.uid), len(groups))
            rows += [(response, look, group) for look in response.looks]
    return [
        Batch(header, *map(list, zip(*part, strict=True)))
        for header, rows in settings.values()
        for part in _parts(rows)
    ]


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    rows, start = sorted(rows, key=lambda row: row[0].length), 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or (stop + 1 - start) * rows[stop][0].length > CELLS:
            yield rows[start:stop]
            start = stop


@dataclass(frozen=True)
class Selection:
    """Recorded steps as batches of all their looks; the first one's header; which steps, in words; notes."""

    batches: list[Batch]
    header: Header
    scope: str
    notes: list[str]


def select(run_dir: Path, steps: str | None = None) -> Selection:
    """The records of a run, or of what ``files.chosen_steps`` takes. A damaged one is left out, with a note.
    RecordError: there is no record, none of these steps, or none that is whole."""
    notes: list[str] = []
    records = list(files.read_run(run_dir, files.chosen_steps(run_dir, steps), notes))
    headers = [record.header for record in records]
    changed = [str(b.step) for a, b in pairwise(headers) if (a.rule, a.knobs) != (b.rule, b.knobs)]
    if changed:
        times = f" and so on, {len(changed)} times" if len(changed) > SEVERAL else ""
        notes.append(f"the rule or its knobs changed at step {', '.join(changed[:SEVERAL])}{times}")
    first, last = headers[0].step, headers[-1].step
    scope = f"step {first}" if len(headers) == 1 else f"{len(headers)} recorded steps, {first} to {last}"
    return Selection(batches(records), headers[0], scope, notes)
