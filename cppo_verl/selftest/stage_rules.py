"""Stage ``rules``: every decision of every rule on the device against the same rule in float64 on the CPU.

Both get the same numbers, already rounded to the device's dtype, so that they differ by the device's own arithmetic
alone. A token whose divergence lies within a rounding of its threshold may fall either way: one, and one more for every
million tokens. With divergences in half precision it would be about eight in a million.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cppo_verl.selftest.batches import Batch, binary_batch, topk_batch
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import BUILT_IN, RULES, capability, evaluate

K = 20
ROOM = 1_000_000  # tokens among which one more decision may fall to the other side
SHORT = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
KINDS, ESTIMATORS = ("tv", "kl"), ("binary", "topk")
# not compared: in bfloat16 log-probs miss a sum of 1 by 1e-3, and the rest mass of a top-K is made of rounding
NOISE = ("kl", "topk", torch.bfloat16)
Knobs = dict[str, Any]
Pair = tuple[torch.dtype, Batch, Batch]  # the same numbers on the device, and in float64 on the CPU
# thresholds such that each of them decides some tokens of the batches
THRESHOLDS: dict[tuple[str, str], Knobs] = {
    ("dppo", "tv"): {"delta": 0.05},
    ("dppo", "kl"): {"delta": 0.02},
    ("cppo", "tv"): {"delta": 0.1, "delta_b": 0.02},
    ("cppo", "kl"): {"delta": 0.05, "delta_b": 0.002},
    ("trm_max", "kl"): {"delta": 0.3},
    ("trm_avg", "kl"): {"delta": 0.003},
    ("trm_max_avg", "kl"): {"delta": 0.5, "delta_b": 0.003},
}
RESTORE, SOFT = {"gate": "restore", "restore_strength": 0.5}, {"gate": "soft"}
GATES: list[Knobs] = [{"gate": "hard"}, RESTORE, SOFT, SOFT | {"attenuation": "sapo"}]
WEIGHTS: list[Knobs] = [{}, {"horizon": "max"}, {"weights": "constant"}, {"weights": "shuffled"}]
# a floor so low that the quantile itself is the budget
QUANTILE = {"budget": "quantile", "delta_b": 1e-4, "budget_cap": 1e3}
BUDGETS: list[Knobs] = [{"budget": "fixed"}, QUANTILE, {"budget": "none"}]

extensions.load_installed()


@pytest.fixture(scope="module")
def pairs(setting) -> list[Pair]:
    """Many responses, a few long ones, and some with a top-K."""
    many, long, top = ((24, 512), (4, 8192), (12, 256)) if setting.on_cpu else ((64, 2048), (8, 32_768), (32, 1024))
    return paired([binary_batch(*many), binary_batch(*long, seed=1), topk_batch(*top, K)], setting.device)


def paired(batches: Sequence[Batch], device: str) -> list[Pair]:
    """The batches in each dtype."""
    rounded = [(dtype, batch.to(device, dtype)) for batch in batches for dtype in SHORT]
    return [(dtype, here, here.to("cpu", torch.float64)) for dtype, here in rounded]


def test_divergence(pairs, table):
    for (dtype, here, exact), kind in product(pairs, KINDS):
        if (kind, here.estimator, dtype) == NOISE:
            continue
        found, wanted = (x.divergence(kind)[x.mask].double().cpu() for x in (here, exact))
        what = f"{here.estimator} {kind.upper()} of {here.mask.shape[0]} x {here.mask.shape[1]}, {SHORT[dtype]}"
        # the rest mass of a top-K, whose logarithm its KL takes, is a difference of rounded sums
        limit = 1e-5 if (kind, here.estimator) == ("kl", "topk") else 2e-6
        table.at_most(f"{what}: largest error", float((found - wanted).abs().max()), limit)


@pytest.mark.parametrize("name", sorted(RULES))
def test_decisions(name, pairs, table):
    differ: dict[str, list[Tensor]] = {}
    for knobs, (dtype, here, exact) in product(settings(name), pairs):
        if knobs.estimator != here.estimator or (knobs.divergence, here.estimator, dtype) == NOISE:
            continue
        what = f"{name}, {knobs.gate} gate" if "gate" in capability(name).reads else name
        try:
            found, wanted = (decisions(name, knobs, batch) for batch in (here, exact))
        except Exception as error:
            if name in BUILT_IN:
                raise
            table.noted(f"{name}: not compared", type(error).__name__, note=f"it may need more: {error}"[:200])
            return
        differ.setdefault(what, []).append(~torch.isclose(found, wanted, rtol=1e-4, atol=1e-5)[exact.mask])
    for what, parts in differ.items():
        every = torch.cat(parts)
        said = f"{len(every):,} tokens in {len(parts)} settings"
        table.at_most(f"{what}: decisions that differ", int(every.sum()), 1 + len(every) // ROOM, 0, note=said)


def settings(name: str) -> Iterator[TrustRegionKnobs]:
    """One of ours with every divergence, estimator, weight, horizon, budget and gate it knows; another as it is."""
    can = capability(name)
    if name not in BUILT_IN:
        yield can.knobs()
        return
    gates = GATES if "gate" in can.reads else GATES[:1]
    weights, budgets = (WEIGHTS, BUDGETS) if "weights" in can.reads else (WEIGHTS[:1], BUDGETS[:1])
    for kind, estimator, *chosen in product(KINDS[can.needs_kl :], ESTIMATORS, weights, budgets, gates):
        changed = {"divergence": kind, "estimator": estimator, "topk": K, **THRESHOLDS.get((name, kind), {})}
        yield can.knobs(**functools.reduce(dict.__or__, chosen, changed))


def decisions(name: str, knobs: TrustRegionKnobs, batch: Batch) -> Tensor:
    """The gate times the weight of each token, (rows, width) float64 on the CPU."""
    handed = batch.divergence(knobs.divergence) if batch.estimator == "topk" else None
    verdict, _ = evaluate(name, batch.tokens(), knobs, handed)
    gate = verdict.gate.double()
    return (gate if verdict.weight is None else gate * verdict.weight.double()).cpu()
