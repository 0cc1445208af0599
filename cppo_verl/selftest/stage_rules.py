"""Stage ``rules``: every decision of every rule on the device against the same rule in float64 on the CPU.

Both get the same numbers, already rounded to float32, so that they differ by the device's own arithmetic alone. A token
whose divergence lies within a rounding of its threshold may fall either way: one, and one more for every million.
What a rule makes of a top-K divergence is the same arithmetic; how that comes about is a matter of stage ``losses``.
"""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cppo_verl.selftest.inputs import moved, responses
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import BUILT_IN, RULES, capability, evaluate
from cppo_verl.trust_region.tokens import Tokens

ROOM = 1_000_000  # tokens among which one more decision may fall to the other side
KINDS = ("tv", "kl")
SOFT = {"gate": "soft"}
GATES = [{"gate": "hard"}, {"gate": "restore", "restore_strength": 0.5}, SOFT, SOFT | {"attenuation": "sapo"}]
WEIGHTS = [{}, {"horizon": "max"}, {"weights": "constant"}, {"weights": "shuffled"}]
# a floor so low that the quantile itself is the budget
QUANTILE = {"budget": "quantile", "delta_b": 1e-4, "budget_cap": 1e3}
BUDGETS: list[dict[str, Any]] = [{"budget": "fixed"}, QUANTILE, {"budget": "none"}]

extensions.load_installed()


@pytest.fixture(scope="module")
def pairs(setting) -> list[tuple[Tokens, Tokens]]:
    """Many responses, and a few long ones."""
    shapes = [(24, 512), (4, 8192)] if setting.on_cpu else [(64, 2048), (8, 32_768)]
    return [paired(responses(*shape), setting.device) for shape in shapes]


def paired(batch: Tokens, device: str) -> tuple[Tokens, Tokens]:
    """The same numbers on the device, and in float64 on the CPU."""
    here = moved(batch, device, torch.float32)
    return here, moved(here, "cpu", torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_divergence(kind, pairs, table):
    errors = [(here.divergence(kind).double().cpu() - exact.divergence(kind)).abs().max() for here, exact in pairs]
    table.at_most(f"binary {kind.upper()}: largest error", float(max(errors)), 2e-6)


@pytest.mark.parametrize("name", sorted(RULES))
def test_decisions(name, pairs, table):
    parts = []
    for knobs, (here, exact) in product(settings(name), pairs):
        try:
            found, wanted = (decisions(name, knobs, batch) for batch in (here, exact))
        except Exception as error:
            if name in BUILT_IN:
                raise
            table.noted(f"{name}: not compared", type(error).__name__, note=f"it may need more: {error}"[:200])
            return
        parts.append(~torch.isclose(found, wanted, rtol=1e-4, atol=1e-5)[exact.mask])
    differ, said = torch.cat(parts), f"{sum(map(len, parts)):,} tokens in {len(parts)} settings"
    table.at_most(f"{name}: decisions that differ", int(differ.sum()), 1 + len(differ) // ROOM, 0, note=said)


def settings(name: str) -> list[TrustRegionKnobs]:
    """One of ours with every divergence, weight, horizon, budget and gate it knows; another as it is."""
    can = capability(name)
    if name not in BUILT_IN:
        return [can.knobs()]
    gates = GATES if "gate" in can.reads else [{}]
    weights, budgets = (WEIGHTS, BUDGETS) if "weights" in can.reads else ([{}], [{}])
    every = product(KINDS[can.needs_kl :], weights, budgets, gates)
    return [can.knobs(divergence=kind, **weight, **budget, **gate) for kind, weight, budget, gate in every]


def decisions(name: str, knobs: TrustRegionKnobs, batch: Tokens) -> Tensor:
    """The gate times the weight of each token, (rows, width) float64 on the CPU."""
    verdict, _ = evaluate(name, batch, knobs)
    gate = verdict.gate.double()
    return (gate if verdict.weight is None else gate * verdict.weight.double()).cpu()
