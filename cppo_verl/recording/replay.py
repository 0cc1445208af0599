"""What each rule would have kept on the recorded tokens: shares by position, sign and cause, and how far two agree.

Counted are the tokens that the training's metrics count: the policy's own, in responses with an advantage. The answer
holds for the tokens as they are; under another rule the policy would have moved otherwise and sampled others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cppo_verl import presets
from cppo_verl.recording import candidates
from cppo_verl.recording.batches import Batch, Selection, taken
from cppo_verl.recording.candidates import Candidate
from cppo_verl.recording.numbers import padded
from cppo_verl.recording.record import CAPPED, PREFIX, TOKEN, RecordError

POSITIONS = 10  # equal parts of a response


@dataclass
class Tally:
    """Sums over counted tokens of what a candidate took away, 1 - gate and at most 1.

    Attributes:
        candidate: whose. removed: in all. positive, negative: by the sign of A. token, prefix: by cause. capped: tokens
            whose weight was cut. by_position: (POSITIONS,) tenths of a response. touched: tokens with gate < 1.
        differs: tokens of all recorded ones whose gate is not the recorded one, bit by bit.
    """

    candidate: Candidate
    removed: float = 0.0
    positive: float = 0.0
    negative: float = 0.0
    token: float = 0.0
    prefix: float = 0.0
    capped: int = 0
    touched: int = 0
    differs: int = 0
    by_position: np.ndarray = field(default_factory=lambda: np.zeros(POSITIONS))


@dataclass
class Replay:
    """Tallies by candidate over the same tokens.

    Attributes:
        tallies: one a candidate. both: (candidates, candidates), tokens that both touch.
        tokens: counted ones; by_position: (POSITIONS,), the same by tenth.
        recorded_tokens: the policy's own, counted or not. responses, groups: how many. looks: of responses, two each
            where several epochs saw them; every look counts its tokens.
    """

    tallies: list[Tally]
    both: np.ndarray
    tokens: int = 0
    recorded_tokens: int = 0
    responses: int = 0
    looks: int = 0
    groups: int = 0
    by_position: np.ndarray = field(default_factory=lambda: np.zeros(POSITIONS))

    def share(self, value: float) -> float:
        """Of the counted tokens; 0 without any."""
        return value / self.tokens if self.tokens else 0.0

    def overlap(self, one: int, other: int) -> float | None:
        """Tokens that both touch among those that either does; None where neither touches any."""
        either = self.both[one, one] + self.both[other, other] - self.both[one, other]
        return float(self.both[one, other] / either) if either else None


def replay(parts: Sequence[Batch], tried: Sequence[Candidate]) -> Replay:
    """Run every candidate over the record. RecordError: a candidate needs a top-K that was not recorded."""
    result = Replay([Tally(candidate) for candidate in tried], np.zeros((len(tried),) * 2, dtype=np.int64))
    for part in parts:
        counted, own = part.counted, part.tokens.mask
        position, advantages = positions(part)[counted], part.tokens.advantages[counted]
        result.tokens += len(position)
        result.recorded_tokens += int(own.sum())
        result.by_position += torch.bincount(position, minlength=POSITIONS).numpy()
        ran, touched = padded([look.gate for look in part.looks], own.shape[1]), []
        for tally in result.tallies:
            gate, cause = part.decide(tally.candidate)
            tally.differs += int((own & ~torch.isclose(gate, ran, rtol=0, atol=0, equal_nan=True)).sum())
            removed, cause = taken(gate[counted]), cause[counted]
            tally.removed += float(removed.sum())
            tally.positive += float(removed[advantages > 0].sum())
            tally.negative += float(removed[advantages < 0].sum())
            tally.token += float(removed[cause == TOKEN].sum())
            tally.prefix += float(removed[cause == PREFIX].sum())
            tally.capped += int((cause == CAPPED).sum())
            tally.touched += int((removed > 0).sum())
            tally.by_position += torch.bincount(position, removed, POSITIONS).numpy()
            touched.append(removed > 0)
        table = torch.stack(touched).double()
        result.both += (table @ table.T).long().numpy()
    result.looks = sum(len(part.looks) for part in parts)
    result.responses = len({id(response) for part in parts for response in part.responses})
    result.groups = len({group for part in parts for group in part.groups})
    return result


def positions(part: Batch) -> Tensor:
    """Which tenth of its response a token lies in, 0 to 9, (rows, width) int64; as the metrics count them."""
    ordinal = part.tokens.mask.long().cumsum(-1)
    return (-(-ordinal * POSITIONS // ordinal[:, -1:].clamp_min(1)) - 1).clamp(0, POSITIONS - 1)


def replayed(
    selection: Selection, chosen: Sequence[str] = (), rules: Sequence[tuple[str, Sequence[str]]] = ()
) -> tuple[Replay, list[str]]:
    """The rule that ran beside presets and rules of one's own, and notes on what was left out.

    ``chosen`` are names of presets; without any, and without ``rules``, all of them. ``rules`` are ``loss_mode`` and
    KEY=VALUE texts of each (``candidates.of_rule``). RecordError: there is no such preset, rule or knob, or its top-K.
    """
    header, parts, notes = selection.header, selection.batches, []
    tried = [candidates.of_preset(name, header) for name in chosen or ([] if rules else presets.names())]
    needy = [one for one in tried if not all(part.measures(one) for part in parts)]
    if needy and not chosen:
        tried = [one for one in tried if one not in needy]
        names = ", ".join(one.name for one in needy)
        notes.append(f"left out, for the record has no D_t of the rollout policy's top-K: {names}")
    tried += [candidates.of_rule(rule, assignments, header) for rule, assignments in rules]
    try:
        tried.insert(0, candidates.recorded(header))
    except RecordError as error:  # a rule of one's own that is not here
        notes.append(f"the rule that ran is left out: {error}")
    if not tried:
        raise RecordError(notes[-1])
    result = replay(parts, tried)
    if result.tallies[0].differs and header.device != "cpu" and tried[0].ran:
        notes.append(f"the rule ran on {header.device}, which sums in another order: gates at a threshold can differ")
    return result, notes
