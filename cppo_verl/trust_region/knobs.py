"""The knobs of the trust region: each declared once, with default, range and meaning.

The declaration is what the checks read, and ``conf/trust_region/base.yaml`` and the table of docs/rules.md are held
equal to it. Defaults are the paper's Base-model setting (arXiv 2606.10968, Section 5 and Appendix D); equation numbers
are that paper's. Nothing here imports torch or verl.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

KEY_PREFIX = "actor_rollout_ref.actor.policy_loss"
LARGEST_TV = 1.0
LARGEST_FLOAT = sys.float_info.max
GATES = ("hard", "soft", "restore")
PREFIX_KNOBS = (  # what the prefix budget is made of
    *("delta_b", "budget", "budget_quantile", "budget_scale", "budget_cap"),
    *("w_min", "weights", "horizon", "max_response_length", "shuffle_seed"),
)
# knob -> another, and the values of that under which nothing looks at the first
IDLE: dict[str, tuple[str, list[Any]]] = {
    "topk": ("estimator", ["binary"]),
    "delta_b": ("budget", ["none"]),
    **dict.fromkeys(("budget_quantile", "budget_scale", "budget_cap"), ("budget", ["none", "fixed"])),
    **dict.fromkeys(("w_min", "horizon"), ("weights", ["constant"])),
    "max_response_length": ("horizon", ["response"]),
    "shuffle_seed": ("weights", ["linear", "constant"]),
    "attenuation": ("gate", ["hard", "restore"]),
    "restore_strength": ("gate", ["hard", "soft"]),
    "trace_cap": ("trace", [1]),
}
VERL_KEYS = {"_target_", "loss_mode", "rollout_correction"}  # verl's PolicyLossConfig
VERL_KEYS |= {"clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta"}


class KnobError(ValueError):
    """A knob is unknown, out of range, or contradicts another; the message names key, value and remedy."""


@dataclass(frozen=True)
class Limits:
    """What a knob's value may be. ``above`` and ``below`` are limits that are left out themselves."""

    kind: type
    null: bool = False
    low: float = -math.inf
    above: float = -math.inf
    high: float = math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    doc: str = ""

    def interval(self) -> str:
        """The range of a number, as in ``(0, 1]``; empty when any will do."""
        begin = f"[{self.low:g}" if self.low > self.above else f"({self.above:g}"
        end = f"{self.high:g}]" if self.high < self.below else f"{self.below:g})"
        return "" if (begin, end) == ("(-inf", "inf)") else f"{begin}, {end}"

    def fault(self, value: Any) -> str:
        """What is wrong with ``value``, to follow it in a sentence; empty when nothing is."""
        if value is None and self.null:
            return ""
        if self.kind is bool:
            return "" if isinstance(value, bool) else "must be true or false"
        if self.kind is str:
            return "" if not self.choices or value in self.choices else f"is not one of {', '.join(self.choices)}"
        numbers = int if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers) or not abs(value) <= LARGEST_FLOAT:
            words = ["must be a", "whole number" if self.kind is int else "number"]
            words += ["in", self.interval()] if self.interval() else []
            return " ".join(words + ["or null"] * self.null)
        inside = self.low <= value <= self.high and self.above < value < self.below
        return "" if inside else f"is outside {self.interval()}"


def knob(default: Any, *, kind: type | None = None, **limits: Any) -> Any:
    """A field of ``TrustRegionKnobs``, or of the class that extends it with a rule's own knobs.

    Args:
        default: its type is what values must have: a whole number, any number (a float), true or false, or a text.
        kind: the type where the default is None, which null then stands for.
        limits: ``low`` and ``high``, the smallest and largest value; ``above`` and ``below`` instead if the limit
            itself is not allowed; ``choices``, the texts that are allowed; ``doc``, what the knob means.
    """
    declared = Limits(kind or type(default), default is None, **limits)
    return dataclasses.field(default=default, metadata={"limits": declared})


@dataclass
class TrustRegionKnobs:
    """Knobs under ``actor_rollout_ref.actor.policy_loss``.

    Raises:
        KnobError: on construction, naming every knob that is out of range.
    """

    divergence: str = knob("tv", choices=("tv", "kl"), doc="D_t: total variation, or KL(μ‖π) in nats")
    estimator: str = knob(
        "binary",
        choices=("binary", "topk"),
        doc="what D_t sees: {sampled, rest}, or {top-K of μ, sampled, rest}: [topk.md](topk.md)",
    )
    topk: int = knob(20, low=1, doc="K of `estimator=topk`")
    delta: float = knob(
        0.15, above=0, doc="token threshold δ (Eq. 3, 8), at most 1 for TV; TRM: threshold of the response"
    )
    delta_b: float = knob(
        0.02, low=0, doc="prefix budget δ_b a unit of weight (Eq. 8), at most 1 for TV; floor when `budget=quantile`"
    )
    w_min: float = knob(0.8, above=0, high=1, doc="last position weight (Eq. 9)")
    weights: str = knob(
        "linear",
        choices=("linear", "constant", "shuffled"),
        doc="Eq. 9, or w = 1, or the same weights permuted in each response",
    )
    horizon: str = knob(
        "response", choices=("response", "max"), doc="T of Eq. 9: the response's own length, or `max_response_length`"
    )
    max_response_length: int | None = knob(
        None, kind=int, low=1, doc="what `horizon=max` means; null is the tensor's width"
    )
    budget: str = knob(
        "quantile", choices=("none", "fixed", "quantile"), doc="no prefix constraint, δ_b as given, or δ_b by Eq. 22"
    )
    budget_quantile: float = knob(0.9, low=0, high=1, doc="q of Eq. 22")
    budget_scale: float = knob(1.0, above=0, doc="scale of Eq. 22")
    budget_cap: float = knob(2.0, low=1, doc="cap of Eq. 22, in units of `delta_b`")
    gate: str = knob(
        "hard", choices=GATES, doc="mask (Eq. 10), attenuation (Appendix C), or a pull back; `cppo` and `dppo`"
    )
    attenuation: str = knob("inverse", choices=("inverse", "sapo"), doc="g(x) of the soft gate beyond x = 1")
    anchor: str = knob(
        "rollout",
        choices=("rollout", "proximal"),
        doc="what D_t, ρ and the budget are measured from: μ, or π as the step began: [staleness.md](staleness.md)",
    )
    budget_target: float | None = knob(
        None,
        kind=float,
        above=0,
        below=1,
        doc="share of masked tokens that a scale on `delta`, `delta_b` is steered to; null is off",
    )
    restore_strength: float = knob(
        1.0, above=0, high=1, doc="size of the pull of `gate=restore`, as a share of a kept update"
    )
    trace: int = knob(
        1, low=1, doc="N of NFPO's forward trace: the weight times the ratios of the next N − 1 tokens; 1 is none"
    )
    trace_cap: float = knob(2.0, low=1, doc="cap on that product")
    ratio_cap: float = knob(20.0, low=1, doc="cap on the importance weight, as in verl's DPPO")
    shuffle_seed: int = knob(0, doc="seed of `weights=shuffled`")
    on_nonfinite: str = knob(
        "raise",
        choices=("raise", "skip"),
        doc="what is [not finite](#numbers-that-are-not-finite) ends the run, or costs that optimizer step",
    )

    def __post_init__(self):
        if problems := list(knob_problems(self)):
            raise KnobError("\n".join(problems))


def knob_problems(knobs: TrustRegionKnobs) -> Iterable[str]:
    """One sentence for every knob of ``knobs`` that is out of range; none when all are well."""
    for name, limits in limits_in_force(knobs).items():
        value = getattr(knobs, name)
        if fault := limits.fault(value):
            yield f"{KEY_PREFIX}.{name}={value!r} {fault}."


def limits_of(kind: type[TrustRegionKnobs] = TrustRegionKnobs) -> dict[str, Limits]:
    """Name -> limits of every knob that was declared with ``knob``, in the order of declaration."""
    return {each.name: each.metadata["limits"] for each in fields(kind) if "limits" in each.metadata}


def limits_in_force(knobs: TrustRegionKnobs) -> dict[str, Limits]:
    """The limits of the knobs' class; of a TV the thresholds ``delta`` and ``delta_b`` are at most 1."""
    limits = limits_of(type(knobs))
    for name in limits.keys() & {"delta", "delta_b"} if knobs.divergence == "tv" else ():
        limits[name] = dataclasses.replace(limits[name], high=min(limits[name].high, LARGEST_TV))
    return limits


def idle_knobs(values: Mapping[str, Any]) -> set[str]:
    """Knobs that another one turns off, by its value in ``values``."""
    return {name for name, (other, off) in IDLE.items() if values.get(other) in off}


def clamped(knobs: TrustRegionKnobs, name: str, value: float) -> float:
    """A value for the knob, brought into its range where it lies outside."""
    limits = limits_in_force(knobs).get(name, Limits(float))
    return min(max(value, limits.low), limits.high)


def knob_names(kind: type[TrustRegionKnobs] = TrustRegionKnobs) -> tuple[str, ...]:
    """Names of all trust-region knobs, in the order of their definition; of a rule's own class, its own as well."""
    return tuple(each.name for each in fields(kind))


def names_from_outside(names: Iterable[str]) -> list[str]:
    """Those keys of a run's ``policy_loss`` that are knobs of a rule from outside: neither ours nor verl's."""
    known = {*knob_names(), *VERL_KEYS, "rule_module"}
    return [name for name in names if name not in known]
