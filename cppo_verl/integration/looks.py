"""In a worker: what the loss saw of the recorded responses, sent home with the metrics.

The trainer marks rows with ``FIELD`` (the number it gave a response, -1 for all others). The rule's verdict is shown to
the ``Watch`` of the loss at hand, and what it saw travels as a metric of its own: gathered over data-parallel ranks and
mini-batches like the others, once a row, whatever the sequence parallelism, without a file.
"""

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

    ``seen`` has, by number: ``log_pi``, ``log_mu``, ``advantages``, ``gate`` (float32), ``mask`` (bool) and ``cause``
    (int8), each (T,); with the top-K estimator also ``divergence``.
    """

    rows: Tensor  # where they stand
    numbers: list[int]  # what the trainer calls them
    lengths: list[int]  # tokens of each response
    seen: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: TensorDict) -> "Watch | None":
        """For the marked rows of a micro-batch; None where there are none."""
        if FIELD not in data.keys():  # noqa: SIM118 - a TensorDict
            return None
        lengths = data["responses"].offsets().diff()
        marks = data[FIELD].flatten().to(lengths.device)
        rows = (marks >= 0).nonzero().flatten()
        return cls(rows, marks[rows].tolist(), lengths[rows].tolist()) if len(rows) else None

    def see_verdict(self, tokens: Tokens, verdict: Verdict, ratio_cap: float, **columns: Tensor) -> None:
        """Keep what the rule decided, and ``columns`` of ``seen``, each (batch, length)."""
        gate, cause = gate_and_cause(tokens, verdict, ratio_cap)
        columns |= {"mask": tokens.mask, "gate": gate, "cause": cause}
        own = [column.detach()[self.rows].float() for column in columns.values()]
        table = torch.stack(own, 1).cpu().numpy()  # one transfer from the device
        for number, length, row in zip(self.numbers, self.lengths, table, strict=True):
            found = {name: values[:length].copy() for name, values in zip(columns, row, strict=True)}
            found["mask"], found["cause"] = found["mask"].astype(bool), found["cause"].astype(np.int8)
            self.seen[number] = found
