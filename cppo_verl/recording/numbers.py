"""What follows from a record: D_t, weights, spending and allowance, by the rules' own functions.

On the CPU the numbers are those of the run to the bit, whatever the padding. A run on another device sums in another
order: there a number can differ in its last place, and a token whose margin is that small can fall on the other side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cppo_verl.recording.record import CAPPED, KEPT, PREFIX, TOKEN, Header, Look, Response
from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.knobs import TrustRegionKnobs, knob_names
from cppo_verl.trust_region.rules import before, capability, position_weights, prefix_budget
from cppo_verl.trust_region.tokens import Tokens


@dataclass(frozen=True)
class Numbers:
    """Derived numbers of one look at a response, each (T,) float32; 0 at tokens that are not the policy's own.

    Attributes:
        divergence: D_t.
        weight: w_t; None for rules without weights.
        spent: S_t, what the tokens up to t have spent. allowance: delta + delta_b W_{t-1}, what S_t may reach at t.
        delta_b: the prefix budget of this response. All three None for rules without one.
    """

    divergence: np.ndarray
    weight: np.ndarray | None = None
    spent: np.ndarray | None = None
    allowance: np.ndarray | None = None
    delta_b: float | None = None


@torch.no_grad()
def of(header: Header, responses: Sequence[Response], last: bool = False) -> list[Numbers]:
    """Derived numbers of each response at its first look, or at its last one."""
    knobs = TrustRegionKnobs(**{name: header.knobs[name] for name in knob_names() if name in header.knobs})
    looks = [response.looks[-1 if last else 0] for response in responses]
    tokens = pad(responses, looks)
    if knobs.estimator == "binary":
        divergence = tokens.divergence(knobs.divergence)
    else:
        found = padded([look.divergence for look in looks], tokens.mask.shape[1])
        divergence = found.masked_fill(~tokens.mask, 0.0)
    columns = {"divergence": divergence}
    budgets: list[float | None] = [None] * len(responses)
    if capability(header.rule).prefix_budget:
        columns["weight"] = weight = position_weights(tokens, knobs)
        if knobs.budget != "none":
            budget = prefix_budget(tokens, divergence, knobs)
            allowance = before(weight.cumsum(-1), 0.0) * budget + knobs.delta  # delta + delta_b W_{t-1}
            allowance = allowance.masked_fill(~tokens.mask, 0.0)
            columns |= {"spent": (weight * divergence).cumsum(-1), "allowance": allowance}
            budgets = budget.squeeze(-1).tolist()
    return [
        Numbers(**{name: column[row, : response.length].numpy() for name, column in columns.items()}, delta_b=delta_b)
        for row, (response, delta_b) in enumerate(zip(responses, budgets, strict=True))
    ]


def gate_and_cause(tokens: Tokens, verdict: Verdict, ratio_cap: float) -> tuple[Tensor, Tensor]:
    """A verdict as it is recorded: the gate in float32 and the code of its cause in int8, both (batch, length)."""
    gate = verdict.gate.to(torch.float32)
    capped = tokens.ratio > ratio_cap if verdict.capped is None else verdict.capped
    cause = torch.where(verdict.over_token, TOKEN, PREFIX)
    return gate, torch.where(gate < 1, cause, torch.where(capped, CAPPED, KEPT)).to(torch.int8)


def pad(responses: Sequence[Response], looks: Sequence[Look]) -> Tokens:
    """The responses as a rule sees them, right-padded; (responses, width of the longest) float32."""
    width = max([1, *(response.length for response in responses)])
    return Tokens.of(
        log_prob=padded([look.log_pi for look in looks], width),
        old_log_prob=padded([response.log_mu for response in responses], width),
        advantages=padded([response.advantages for response in responses], width),
        mask=padded([response.mask for response in responses], width).bool(),
    )


def padded(rows: Sequence[np.ndarray | None], width: int) -> Tensor:
    """(rows, width) float32, 0 after the end of a row, and in one that is not there."""
    out = torch.zeros(len(rows), width)
    for row, values in enumerate(rows):
        if values is not None:
            out[row, : len(values)] = torch.from_numpy(np.array(values))
    return out
