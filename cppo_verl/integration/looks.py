"""In a worker: what the loss saw of the recorded responses, sent home with the metrics.

The trainer marks rows with ``FIELD`` (the number it gave a response, -1 for all others). The loss puts a ``Watch``
around verl's, the rule's verdict is shown to it, and what it saw travels as a metric of its own: gathered over
data-parallel ranks and mini-batches like the others, once a row, whatever the sequence parallelism, without a file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from cppo_verl.recording.numbers import gate_and_cause
from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.tokens import Tokens

FIELD = "record_row"  # (batch,) int64 in the actor's batch
METRIC = "trust_region/record"

_watch: ContextVar["Watch | None"] = ContextVar("record_watch", default=None)


@dataclass
class Watch:
    """Rows of a micro-batch that are recorded.

    Attributes:
        rows: where they stand. numbers: what the trainer calls them. lengths: tokens of each response.
        seen: by number, what was seen: ``width``; ``log_pi``, ``log_mu``, ``advantages``, ``gate`` (float32), ``mask``
            (bool) and ``cause`` (int8), each (T,); with the top-K estimator also ``divergence`` and ``top_k_log_pi``.
    """

    rows: Tensor
    numbers: list[int]
    lengths: list[int]
    seen: dict[int, dict[str, Any]] = field(default_factory=dict)

    def see_verdict(
        self,
        given: Sequence[Tensor],
        tokens: Tokens,
        verdict: Verdict,
        divergence: Tensor | None,
        ratio_cap: float,
    ) -> None:
        """Keep what the rule decided, and log pi, log mu and advantages as they were ``given``, each (batch, length).

        ``divergence`` (batch, length) only where log-probs do not determine it.
        """
        own = tokens.rows(self.rows)
        capped = None if verdict.capped is None else verdict.capped[self.rows]
        verdict = replace(
            verdict, gate=verdict.gate[self.rows], over_token=verdict.over_token[self.rows], capped=capped
        )
        gate, cause = gate_and_cause(own, verdict, ratio_cap)
        names = ("log_pi", "log_mu", "advantages", "mask", "gate", "cause", "divergence")
        values = [
            *(x.detach()[self.rows] for x in given),
            own.mask,
            gate,
            cause,
            *([] if divergence is None else [divergence[self.rows]]),
        ]
        table = torch.stack([value.float() for value in values], 1).cpu().numpy()  # one transfer from the device
        for number, length, row in zip(self.numbers, self.lengths, table, strict=True):
            found = {name: column[:length].copy() for name, column in zip(names, row, strict=False)}
            found["mask"], found["cause"] = found["mask"].astype(bool), found["cause"].astype(np.int8)
            self.seen.setdefault(number, {}).update(found, width=table.shape[-1])

    def see_top_k(self, log_pi: Tensor, log_mu: Tensor) -> None:
        """Keep log pi of the entries that mu's top-K lists; both (batch, length, K), absent ones -inf in ``log_mu``."""
        for number, row in zip(self.numbers, self.rows.tolist(), strict=True):
            listed = log_pi[row][log_mu[row] > -torch.inf]
            self.seen.setdefault(number, {})["top_k_log_pi"] = listed.float().cpu().numpy()


def watching() -> Watch | None:
    """The watch around the loss at hand; None where nothing of this micro-batch is recorded."""
    return _watch.get()


@contextmanager
def watch(data: TensorDict) -> Iterator[Watch | None]:
    """Watch the micro-batch's recorded rows, if there are any."""
    numbers = data[FIELD].flatten().tolist() if FIELD in data.keys() else []  # noqa: SIM118 - a TensorDict
    rows = [row for row, number in enumerate(numbers) if number >= 0]
    found = None
    if rows:
        responses = data["responses"]
        ends = responses.offsets().diff().tolist() if responses.is_nested else [responses.shape[1]] * len(numbers)
        where = torch.tensor(rows, device=responses.device)
        found = Watch(where, [numbers[row] for row in rows], [ends[row] for row in rows])
    token = _watch.set(found)
    try:
        yield found
    finally:
        _watch.reset(token)
