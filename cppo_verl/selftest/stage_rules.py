"""Stage ``rules``: every decision of every rule on the device against the same rule in float64 on the CPU.

Both get the same numbers, already rounded to the device's dtype, so that they differ by the device's own arithmetic
alone. A token whose divergence lies within a rounding of its threshold may fall either way: one, and one more for every
million tokens. With divergences in half precision it would be about eight in a million.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cppo_verl.selftest.batches import Batch, binary_batch, topk_batch
from cppo_verl.trust_region import extensions, topk
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import BUILT_IN, RULES, capability, evaluate

K = 20
ROOM = 1_000_000  # tokens among which one more decision may fall to the other side
# largest error of D_t; the rest mass of a top-K, whose logarithm its KL takes, is a difference of rounded sums
ERRORS = {("tv", "binary"): 2e-6, ("tv", "topk"): 2e-6, ("kl", "binary"): 2e-6, ("kl", "topk"): 1e-5}
SHORT = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
Knobs = dict[str, Any]
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
GATES: tuple[Knobs, ...] = (
    {"gate": "hard"},
    {"gate": "restore", "restore_strength": 0.5},
    {"gate": "soft"},
    {"gate": "soft", "attenuation": "sapo"},
)
WEIGHTS: tuple[Knobs, ...] = ({}, {"horizon": "max"}, {"weights": "constant"}, {"weights": "shuffled"})
# a floor so low that the quantile itself is the budget
BUDGETS: tuple[Knobs, ...] = (
    {"budget": "fixed"},
    {"budget": "quantile", "delta_b": 1e-4, "budget_cap": 1e3},
    {"budget": "none"},
)

extensions.load_installed()


@pytest.fixture(scope="module")
def batches(setting) -> list[Batch]:
    """Many responses, a few long ones, and some with a top-K."""
    if setting.on_cpu:
        return [binary_batch(24, 512), binary_batch(4, 8192, seed=1), topk_batch(12, 256, K)]
    return [binary_batch(64, 2048), binary_batch(8, 32_768, seed=1), topk_batch(32, 1024, K)]


@pytest.mark.parametrize("dtype", SHORT, ids=SHORT.values())
@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_divergence(kind, dtype, batches, setting, table):
    for batch in batches:
        estimator = "binary" if batch.log_pi is None else "topk"
        if not compared(kind, estimator, dtype):
            continue
        rounded = batch.to(setting.device, dtype)
        here, exact = (
            divergence(x, kind)[batch.mask].double().cpu() for x in (rounded, rounded.to("cpu", torch.float64))
        )
        what = f"{estimator} {kind.upper()} of {batch.mask.shape[0]} x {batch.mask.shape[1]}, {SHORT[dtype]}"
        table.at_most(f"{what}: largest error", float((here - exact).abs().max()), ERRORS[kind, estimator])


@pytest.mark.parametrize("name", sorted(RULES))
def test_decisions(name, batches, setting, table):
    differ: dict[str, list[Tensor]] = {}
    for knobs, dtype, batch in product(settings(name), SHORT, batches):
        suits = (batch.log_pi is None) == (knobs.estimator == "binary")
        if suits and compared(knobs.divergence, knobs.estimator, dtype):
            what = f"{name}, {knobs.gate} gate" if "gate" in capability(name).reads else name
            try:
                found = otherwise(name, knobs, batch.to(setting.device, dtype))
            except Exception as error:
                if name in BUILT_IN:
                    raise
                table.noted(f"{name}: not compared", type(error).__name__, note=f"it may need more: {error}"[:200])
                return
            differ.setdefault(what, []).append(found)
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
    kinds = ("kl",) if can.needs_kl else ("tv", "kl")
    gates = GATES if "gate" in can.reads else GATES[:1]
    weights, budgets = (WEIGHTS, BUDGETS) if "weights" in can.reads else (WEIGHTS[:1], BUDGETS[:1])
    for kind, estimator, *chosen in product(kinds, ("binary", "topk"), weights, budgets, gates):
        changed = {"divergence": kind, "estimator": estimator, "topk": K, **THRESHOLDS.get((name, kind), {})}
        for knobs in chosen:
            changed |= knobs
        yield can.knobs(**changed)


def compared(kind: str, estimator: str, dtype: torch.dtype) -> bool:
    """Not the top-K KL in bfloat16: there log-probs miss a sum of 1 by 1e-3, and the rest mass is made of rounding."""
    return not (estimator == "topk" and kind == "kl" and dtype == torch.bfloat16)


def otherwise(name: str, knobs: TrustRegionKnobs, batch: Batch) -> Tensor:
    """Which valid tokens the device decides, or weighs, otherwise than float64 on the CPU."""
    here, exact = (decisions(name, knobs, x) for x in (batch, batch.to("cpu", torch.float64)))
    near = torch.isclose(here, exact, rtol=1e-4, atol=1e-5)
    return ~near[batch.mask.cpu()]


def decisions(name: str, knobs: TrustRegionKnobs, batch: Batch) -> Tensor:
    """The gate times the weight of each token, (rows, width) float64 on the CPU."""
    handed = None if batch.log_pi is None else divergence(batch, knobs.divergence)
    verdict, _ = evaluate(name, batch.tokens(), knobs, handed)
    gate = verdict.gate.double()
    return (gate if verdict.weight is None else gate * verdict.weight.double()).cpu()


def divergence(batch: Batch, kind: str) -> Tensor:
    """D_t, (rows, width), as the batch's estimator has it."""
    if batch.log_pi is None or batch.log_mu is None:
        return batch.tokens().divergence(kind)
    return topk.TOPK[kind](batch.log_pi, batch.log_mu, batch.log_prob, batch.old_log_prob)
