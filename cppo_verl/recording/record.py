"""What is recorded of a step and of a response: plain values and numpy arrays.

T is the number of a response's tokens, tool output included; ``mask`` says which of them are the policy's own. All
log-probs are float32 in nats, as the loss saw them, at the sampling temperature. What follows exactly from these is not
kept: ``numbers.of`` derives it. A field says how it lies in a file (``files``), so a new one is declared here alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow

from cppo_verl.errors import UserError

# Causes, a number a token
KEPT = 0  # the whole update counts
TOKEN = 1  # the token alone (or its whole response) breaks its threshold
PREFIX = 2  # only the prefix budget masks or attenuates it
CAPPED = 3  # the update counts with an importance weight that was cut


class RecordError(UserError, ValueError):
    """A record is missing, damaged or not what is asked of it; the message names the file and a remedy."""


def value(column: pyarrow.DataType, **default: Any) -> Any:
    """A field that is a column of that type."""
    return field(metadata={"column": column}, **default)


def tokens(of: pyarrow.DataType, **default: Any) -> Any:
    """A field that is a column of lists, an entry a token."""
    return field(metadata={"column": pyarrow.list_(of), "tokens": True}, **default)


@dataclass(frozen=True)
class Header:
    """What holds for a whole step.

    Attributes:
        step: training step, from 1.
        rule: ``loss_mode``, a name of ``trust_region.rules.RULES`` or one of verl's losses.
        knobs: the knobs in force, by the names of ``TrustRegionKnobs``; those of a rule of one's own beside them.
        clip_low, clip_high, clip_cap: ``clip_ratio_low``, ``clip_ratio_high`` and ``clip_ratio_c`` of verl's losses.
        tokenizer: its name or path. vocabulary: how many ids it has.
        responses: trained responses of the step, of which the recorded ones were drawn.
        updates: optimizer updates an epoch. epochs: passes over the batch.
        seed: of the draw. device: type of the device that the rule ran on, ``cpu`` or ``cuda``.
        every: steps between two records, more than 1 once older ones had to make room.
        version: of cppo_verl.
    """

    step: int
    rule: str
    knobs: Mapping[str, Any]
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_cap: float = 3.0
    tokenizer: str = ""
    vocabulary: int = 0
    responses: int = 0
    updates: int = 1
    epochs: int = 1
    seed: int = 0
    device: str = "cpu"
    every: int = 1
    version: str = ""


@dataclass(frozen=True)
class Look:
    """A response as one update saw it.

    Attributes:
        log_pi: log-probs of the policy being trained.
        gate: what the rule multiplied the update with: 0 or 1, between them for a soft gate, below 0 where it was
            turned round (``gate=restore``, GBPO). Arbitrary where ``mask`` is false.
        cause: ``KEPT``, ``TOKEN``, ``PREFIX`` or ``CAPPED``.
        update: number of the update within the step, from 0; None where the order is not known (``actor.shuffle``).
        divergence: D_t of the top-K estimator; None for the binary one, whose D_t follows from the log-probs.
    """

    log_pi: np.ndarray = tokens(pyarrow.float32())
    gate: np.ndarray = tokens(pyarrow.float32())
    cause: np.ndarray = tokens(pyarrow.int8())
    update: int | None = value(pyarrow.int32(), default=None)
    divergence: np.ndarray | None = tokens(pyarrow.float32(), default=None)


@dataclass(frozen=True)
class Response:
    """One response and what the rule made of it.

    Attributes:
        uid: of the prompt; responses that share it form a group. sample, output: which response to the prompt, and
            which output of its agent loop.
        prompt: text. prompt_ids: its tokens.
        pieces: strings that put together are the response's text; "" where a token ends inside a character.
        token_ids: T of them. mask: which are the policy's own. log_mu: log-probs of the policy that D_t is measured
            from: the one that sampled, or with ``anchor=proximal`` the trained one at the start of the step.
        log_rollout: with ``anchor=proximal`` the log-probs of the policy that sampled; None where that is ``log_mu``.
        advantages: arbitrary at tokens that are not the policy's own. reward: of the response, the sum over its tokens.
        first, last: the first and the last update that saw the response; ``last`` is None when that is the same one.
        versions_behind: how many versions of the weights lie between the oldest that sampled a token of the response
            and the one being trained when the step began; None where the rollout does not say.

    Raises:
        ValueError: one of the arrays does not have its length.
    """

    first: Look
    uid: str = value(pyarrow.string())
    sample: int = value(pyarrow.int32())
    prompt: str = value(pyarrow.string())
    prompt_ids: np.ndarray = value(pyarrow.list_(pyarrow.int32()))
    pieces: list[str] = tokens(pyarrow.string())
    token_ids: np.ndarray = tokens(pyarrow.int32())
    mask: np.ndarray = tokens(pyarrow.bool_())
    log_mu: np.ndarray = tokens(pyarrow.float32())
    advantages: np.ndarray = tokens(pyarrow.float32())
    reward: float = value(pyarrow.float64())
    last: Look | None = None
    output: int = value(pyarrow.int32(), default=0)
    versions_behind: int | None = value(pyarrow.int32(), default=None)
    log_rollout: np.ndarray | None = tokens(pyarrow.float32(), default=None)

    def __post_init__(self) -> None:
        parts: tuple[Response | Look, ...] = (self, *self.looks)
        for part in parts:
            for each in fields(part):
                column = getattr(part, each.name)
                absent = column is None and each.default is None
                if each.metadata.get("tokens") and not absent and len(column) != self.length:
                    raise ValueError(f"{self.uid}: {each.name} has {len(column)} entries for {self.length} tokens")

    @property
    def looks(self) -> tuple[Look, ...]:
        """The updates that are recorded, one or two."""
        return (self.first,) if self.last is None else (self.first, self.last)

    @property
    def text(self) -> str:
        """The response's text."""
        return "".join(self.pieces)

    @property
    def length(self) -> int:
        """T."""
        return len(self.token_ids)


@dataclass(frozen=True)
class StepRecord:
    """The recorded responses of a step, those of a group beside each other."""

    header: Header
    responses: tuple[Response, ...]
