"""In a worker: what the loss saw of the recorded responses, sent home with the metrics.

The trainer marks rows with ``FIELD`` (the number it gave a response, -1 for all others). The rule's verdict is shown to
the ``Watch`` of the loss at hand, and what it saw travels as a metric of its own: gathered over data-parallel ranks and
mini-batches like the others, once a row, whatever the sequence parallelism, without a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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

    @classmethod
    def of(cls, data: TensorDict) -> "Watch | None":
        """For the marked rows of a micro-batch; None where there are none."""
        marks = data[FIELD].flatten() if FIELD in data.keys() else torch.tensor([])  # noqa: SIM118 - a TensorDict
        rows = (marks >= 0).nonzero().flatten()
        if not len(rows):
            return None
        responses = data["responses"]
        ends = responses.offsets().diff() if responses.is_nested else torch.full(marks.shape, responses.shape[1])
        return cls(rows.to(responses.device), marks[rows].tolist(), ends[rows.to(ends.device)].tolist())

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
        gate, cause = gate_and_cause(tokens, verdict, ratio_cap)
        columns = dict(zip(("log_pi", "log_mu", "advantages"), given, strict=True))
        columns |= {"mask": tokens.mask, "gate": gate, "cause": cause}
        columns |= {} if divergence is None else {"divergence": divergence}
        own = [column.detach()[self.rows].float() for column in columns.values()]
        table = torch.stack(own, 1).cpu().numpy()  # one transfer from the device
        for number, length, row in zip(self.numbers, self.lengths, table, strict=True):
            found = {name: values[:length].copy() for name, values in zip(columns, row, strict=True)}
            found["mask"], found["cause"] = found["mask"].astype(bool), found["cause"].astype(np.int8)
            self.seen.setdefault(number, {}).update(found, width=table.shape[-1])

    def see_top_k(self, log_pi: Tensor, log_mu: Tensor) -> None:
        """Keep log pi of the entries that mu's top-K lists; both (batch, length, K), absent ones -inf in ``log_mu``."""
        for number, row in zip(self.numbers, self.rows.tolist(), strict=True):
            listed = log_pi[row][log_mu[row] > -torch.inf]
            self.seen.setdefault(number, {})["top_k_log_pi"] = listed.float().cpu().numpy()
