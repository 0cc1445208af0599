"""Stage ``rules``: every decision of every rule on the device against its definition in float64 on the CPU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cppo_verl.selftest import expected
from cppo_verl.selftest.batches import Batch, binary_batch, topk_batch
from cppo_verl.selftest.expected import Range, Rounded
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import Row, at_most, equal, noted
from cppo_verl.trust_region import extensions, topk
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import RULES, evaluate, knobs_of_rule, position_weights
from cppo_verl.trust_region.tokens import Tokens

K = 20
DTYPES = (torch.float32, torch.bfloat16)
EXCUSED = 1e-4  # largest share of decisions that may lie within rounding of their threshold
UNKNOWN = 1e-4  # share of decisions of a rule without a definition here that may differ from its own float64
THRESHOLDS: Mapping[tuple[str, str], dict[str, float]] = {
    ("dppo", "tv"): {"delta": 0.05},
    ("dppo", "kl"): {"delta": 0.02},
    ("cppo", "tv"): {"delta": 0.1, "delta_b": 0.02},
    ("cppo", "kl"): {"delta": 0.05, "delta_b": 0.002},
    ("trm_max", "kl"): {"delta": 0.3},
    ("trm_avg", "kl"): {"delta": 0.003},
    ("trm_max_avg", "kl"): {"delta": 0.5, "delta_b": 0.003},
}  # such that each of them decides some tokens of the batches
# wide enough that the quantile itself is the budget of most responses
BUDGETS: Mapping[str, dict[str, float]] = {"none": {}, "fixed": {}, "quantile": {"delta_b": 1e-4, "budget_cap": 1e3}}

GATES: tuple[dict[str, Any], ...] = (
    {"gate": "hard"},
    {"gate": "restore", "restore_strength": 0.5},
    {"gate": "soft"},
    {"gate": "soft", "attenuation": "sapo"},
)


@dataclass
class Tally:
    """What was compared under one name."""

    settings: int = 0
    decisions: int = 0
    excused: int = 0
    wrong: int = 0
    masked: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, gate: Tensor, allowed: Range, mask: Tensor, said: str) -> None:
        """One setting's gates, (batch, length) float64 on the CPU; only valid tokens count."""
        bad = ((gate < allowed.low) | (gate > allowed.high) | gate.isnan()) & mask
        self.settings += 1
        self.decisions += int(mask.sum())
        self.excused += int(((allowed.high - allowed.low > 0.5) & mask).sum())
        self.wrong += int(bad.sum())
        self.masked += float((1 - gate[mask]).sum())
        if bad.any() and len(self.examples) < 3:
            row, column = bad.nonzero()[0].tolist()
            low, high = (float(x[row, column]) for x in (allowed.low, allowed.high))
            self.examples.append(
                f"{said}, row {row}, token {column}: {float(gate[row, column]):g} not in [{low:g}, {high:g}]"
            )

    def row(self, what: str) -> Row:
        """Its line of the table."""
        masked = 100 * self.masked / max(self.decisions, 1)
        note = f"{self.decisions:,} tokens in {self.settings} settings, {masked:.0f}% masked"
        return equal(f"{what}: decisions that differ", self.wrong, 0, note="; ".join([note, *self.examples]))


@dataclass
class Errors:
    """Largest error of a value over its rounding bound, by name."""

    worst: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, got: Tensor, right: Rounded, mask: Tensor) -> None:
        over = (got - right.value).abs() / right.error.clamp_min(torch.finfo(torch.float64).tiny)
        over = torch.where(got == right.value, 0.0, over)[mask]
        self.worst[name] = max(self.worst.get(name, 0.0), float(over.nan_to_num(nan=torch.inf).max()))

    def rows(self) -> Iterator[Row]:
        for name, worst in self.worst.items():
            yield at_most(f"{name}: largest error, in rounding bounds", worst, 1)


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    device = torch.device(setting.device)
    tallies: dict[str, Tally] = {}
    errors = Errors()
    for dtype in DTYPES:
        for batch in batches(setting):
            rounded = batch.to(device, dtype)
            for name, changed in settings():
                if applies(changed, batch, dtype):
                    check(name, changed, rounded, tallies, errors)
    yield from (tally.row(what) for what, tally in tallies.items())
    excused = sum(tally.excused for tally in tallies.values()) / sum(tally.decisions for tally in tallies.values())
    yield at_most("decisions within rounding of a threshold, share", excused, EXCUSED, note="they may fall either way")
    yield from errors.rows()
    extensions.load_installed()
    known = {*expected.GATES, *expected.WEIGHTS}
    for name in sorted(set(RULES) - known):
        yield from unknown(name, binary_batch(24, 512).to(device, torch.float32))


def batches(setting: Setting) -> list[Batch]:
    """Many responses, a few long ones, and some with a top-K."""
    if setting.device == "cpu":
        return [binary_batch(24, 512), binary_batch(4, 8192, seed=1), topk_batch(12, 256, K)]
    return [binary_batch(64, 2048), binary_batch(8, 32_768, seed=1), topk_batch(32, 1024, K)]


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule with every divergence, estimator, weight, horizon, budget and gate that it knows."""
    estimators = ("binary", "topk")
    for kind, estimator in product(("tv", "kl"), estimators):
        base = {"divergence": kind, "estimator": estimator, "topk": K}
        for gate in GATES[:2]:
            yield "dppo", {**base, **THRESHOLDS["dppo", kind], **gate}
        shapes = product(("linear", "constant", "shuffled"), ("response", "max"), ("fixed", "quantile", "none"))
        for weights, horizon, budget in shapes:
            for gate in GATES:
                if weights == "linear" or horizon == "response":
                    shape = {"weights": weights, "horizon": horizon, "budget": budget, **gate}
                    yield "cppo", {**base, **THRESHOLDS["cppo", kind], **BUDGETS[budget], **shape}
    for name, estimator in product(("trm_max", "trm_avg", "trm_max_avg"), estimators):
        yield name, {"divergence": "kl", "estimator": estimator, "topk": K, **THRESHOLDS[name, "kl"]}
    yield "minpro", {"ratio_cap": 1.28}


def applies(changed: Mapping[str, Any], batch: Batch, dtype: torch.dtype) -> bool:
    """Whether a setting is for this batch. Not the top-K KL in bfloat16: there log-probs miss a sum of 1 by 1e-3, and
    the rest mass, whose logarithm counts, is made of rounding alone."""
    estimator = changed.get("estimator", "binary")
    if estimator == "topk" and changed["divergence"] == "kl" and dtype == torch.bfloat16:
        return False
    return (batch.topk is not None) == (estimator == "topk")


def check(name: str, changed: dict[str, Any], batch: Batch, tallies: dict[str, Tally], errors: Errors) -> None:
    """One rule with one setting of its knobs on a batch that lies on the device, in the dtype that it gets."""
    knobs = TrustRegionKnobs(**changed)
    exact = batch.to("cpu", torch.float64)
    kind, estimator = knobs.divergence, knobs.estimator
    tokens = tokens_of(batch)
    handed, right = None, expected.binary(exact.log_prob, exact.old_log_prob, kind)
    if batch.topk is not None:
        handed = topk.TOPK[kind](batch.topk.log_pi, batch.topk.log_mu, batch.log_prob, batch.old_log_prob)
        right = expected.top_k(exact, kind)
    verdict, divergence = evaluate(name, tokens, knobs, handed)
    errors.add(f"{estimator} {kind.upper()}", divergence.double().cpu(), right, exact.mask)
    case = expected.Case(exact, right, knobs, _shuffled(exact, knobs))
    said = ", ".join([*(f"{k}={v}" for k, v in changed.items()), str(batch.log_prob.dtype).removeprefix("torch.")])
    if name in expected.WEIGHTS:
        assert verdict.weight is not None
        tallies.setdefault(name, Tally()).add(
            verdict.weight.double().cpu(), expected.WEIGHTS[name](case), exact.mask, said
        )
        return
    what = f"{name}, {knobs.gate} gate" if name in ("cppo", "dppo") else name
    gate = verdict.gate.double().cpu()
    tallies.setdefault(what, Tally()).add(gate, expected.GATES[name](case), exact.mask, said)


def unknown(name: str, batch: Batch) -> Iterator[Row]:
    """A rule that has no definition here, compared with its own float64 on the CPU."""
    try:
        knobs = knobs_of_rule(name)()
        here, _ = evaluate(name, tokens_of(batch), knobs)
        exact, _ = evaluate(name, tokens_of(batch.to("cpu", torch.float64)), knobs)
    except Exception as error:  # noqa: BLE001 - it may need more than these tokens
        yield noted(f"{name}: not compared", f"{type(error).__name__}", note=str(error)[:200])
        return
    differ = (here.gate.double().cpu() - exact.gate.double()).abs()[batch.mask.cpu()] > 1e-3
    share = float(differ.double().mean())
    yield at_most(f"{name}: share that differs from its own float64", share, UNKNOWN, 0)


def tokens_of(batch: Batch) -> Tokens:
    """The batch as a loss hands it to a rule."""
    return Tokens.of(batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask)


def _shuffled(exact: Batch, knobs: TrustRegionKnobs) -> Tensor | None:
    """The permuted weights by the CPU in float64; None when they are no permutation of the linear ones, which then
    are what is expected."""
    if knobs.weights != "shuffled":
        return None
    mixed = position_weights(tokens_of(exact), knobs)
    straight = expected.weights(expected.Case(exact, Rounded(exact.log_prob, exact.log_prob), knobs)).value
    return mixed if torch.allclose(mixed.sort(-1).values, straight.sort(-1).values, atol=1e-12) else None
