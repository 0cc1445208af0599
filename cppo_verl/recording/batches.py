"""Recorded responses as padded batches, and what a candidate decides on them; the rules' own functions throughout."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cppo_verl.recording import files
from cppo_verl.recording.candidates import CLIPS, Candidate, recorded
from cppo_verl.recording.numbers import depends_on_width, gate_and_cause, pad, padded
from cppo_verl.recording.record import Header, Look, RecordError, Response, StepRecord
from cppo_verl.trust_region import metrics
from cppo_verl.trust_region.rules import RULES, evaluate, observe_clipping
from cppo_verl.trust_region.tokens import Tokens
from cppo_verl.trust_region.topk import TOPK, unpack

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
    _divergence: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = pad(self.responses, self.looks, 0)
        bad = torch.stack(list(metrics.nonfinite(self.tokens).values())).any(0).any(-1, keepdim=True)
        self.counted = self.tokens.counted & ~bad

    def decide(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """Gate (float32) and cause (int8) of every token, (rows, width). RecordError: as for ``divergence``."""
        if candidate.ran:
            candidate = recorded(self.header)
        if not depends_on_width(candidate.knobs):
            return self._decide(slice(None), candidate)
        gate, cause = torch.ones_like(self.tokens.log_prob), torch.zeros_like(self.tokens.mask, dtype=torch.int8)
        widths = np.array([max(response.width, response.length, 1) for response in self.responses])
        for width in np.unique(widths).tolist():
            rows = np.flatnonzero(widths == width).tolist()
            gate[rows], cause[rows] = self._decide(rows, candidate.changed({"max_response_length": width}))
        return gate, cause

    @torch.no_grad()
    def _decide(self, rows: Any, candidate: Candidate) -> tuple[Tensor, Tensor]:
        tokens = self.tokens.rows(rows)
        if candidate.rule not in RULES:
            low, high, cap = (candidate.clips[name] for name in CLIPS)
            return gate_and_cause(tokens, observe_clipping(tokens, candidate.rule, low, high, cap), cap)
        divergence = self.divergence(candidate)[rows] if candidate.knobs.estimator == "topk" else None
        verdict, _ = evaluate(candidate.rule, tokens, candidate.knobs, divergence)
        return gate_and_cause(tokens, verdict, candidate.knobs.ratio_cap)

    def divergence(self, candidate: Candidate) -> Tensor:
        """D_t as the candidate measures it, (rows, width) float32. RecordError: its top-K was not recorded."""
        kind = candidate.knobs.divergence
        if candidate.knobs.estimator != "topk":
            return self.tokens.divergence(kind)
        if any(look.top_k_log_pi is None for look in self.looks):
            said = "run with policy_loss.estimator=topk, or choose a rule with estimator=binary."
            raise RecordError(f"{candidate.name} needs mu's top-K, which this record does not have: {said}")
        same = kind == self.header.knobs.get("divergence")
        if not same and self.header.knobs.get("anchor") == "proximal":
            said = "the policy at the start of the step (anchor=proximal), of which only D_t as it ran was recorded"
            raise RecordError(f"{candidate.name} needs the top-K {kind.upper()} from {said}.")
        if kind not in self._divergence:
            found = [
                look.divergence if same and look.divergence is not None else top_k_divergence(response, look, kind)
                for response, look in zip(self.responses, self.looks, strict=True)
            ]
            self._divergence[kind] = padded(found, self.tokens.mask.shape[1])
        return self._divergence[kind]


def taken(gate: Tensor) -> Tensor:
    """How much a gate takes of an update, 1 - gate and at most 1, float64; as the metrics count it."""
    return (1 - gate).double().clamp_max_(1.0)


def top_k_divergence(response: Response, look: Look, kind: str) -> np.ndarray:
    """D_t over {top-K, sampled, rest} of one response, (T,) float32."""
    assert response.top_k_mu is not None and look.top_k_log_pi is not None
    packed = torch.from_numpy(np.array(response.top_k_mu))
    count = int(packed[0]) & 0xFFFF | int(packed[1]) << 16
    _, log_mu, rest = unpack(packed, max([1, *packed[2 : 2 + count].tolist()]))
    log_pi = torch.full_like(log_mu, -torch.inf)
    log_pi[log_mu > -torch.inf] = torch.from_numpy(np.array(look.top_k_log_pi))
    log_prob, old_log_prob = (torch.from_numpy(np.array(x)) for x in (look.log_pi, response.log_mu))
    return TOPK[kind](log_pi, log_mu, log_prob, old_log_prob, rest).numpy()


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
    for what, held in (
        ("rule or its knobs", [(header.rule, repr(sorted(header.knobs.items()))) for header in headers]),
        ("tokenizer", [(header.tokenizer, header.vocabulary) for header in headers]),
    ):
        changed = [str(header.step) for header, (a, b) in zip(headers[1:], pairwise(held), strict=True) if a != b]
        if changed:
            times = f" and so on, {len(changed)} times" if len(changed) > SEVERAL else ""
            notes.append(f"the {what} changed at step {', '.join(changed[:SEVERAL])}{times}")
    first, last = headers[0].step, headers[-1].step
    scope = f"step {first}" if len(headers) == 1 else f"{len(headers)} recorded steps, {first} to {last}"
    return Selection(batches(records), headers[0], scope, notes)
