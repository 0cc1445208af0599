"""The knobs of the trust region, their ranges, and what is said when one is wrong.

Defaults are the paper's Base-model setting (arXiv 2606.10968, Section 5 and Appendix D).
Nothing here imports torch or verl.
"""

import math
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any

DIVERGENCES = ("tv", "kl")
ESTIMATORS = ("binary", "topk")
WEIGHTS = ("linear", "constant", "shuffled")
HORIZONS = ("response", "max")
BUDGETS = ("none", "fixed", "quantile")
GATES = ("hard", "soft", "restore")
ANCHORS = ("rollout", "proximal")
ATTENUATIONS = ("inverse", "sapo")
ON_NONFINITE = ("raise", "skip")

KEY_PREFIX = "actor_rollout_ref.actor.policy_loss"


class KnobError(ValueError):
    """A knob is unknown, out of range, or contradicts another; the message names key, value and remedy."""


@dataclass
class TrustRegionKnobs:
    """Knobs under ``actor_rollout_ref.actor.policy_loss``; equation numbers are those of arXiv 2606.10968.

    Attributes:
        divergence: token divergence D_t of the trained policy from the rollout policy, ``tv`` or ``kl`` (mu||pi).
        estimator: ``binary`` (sampled token against the rest) or ``topk`` (mu's top-K, sampled token, rest).
        topk: K of the ``topk`` estimator.
        delta: token threshold (Eq. 3, 8); in TV units (0..1] or nats. For TRM the threshold of the response.
        delta_b: prefix budget per unit of weight (Eq. 8); the floor when ``budget=quantile``.
        w_min: last position weight (Eq. 9), in (0, 1].
        weights: ``linear`` (Eq. 9), ``constant`` (w = 1) or ``shuffled`` (same multiset, permuted in each response).
        horizon: T of Eq. 9: the response's own length, or the maximum response length.
        max_response_length: the length that ``horizon=max`` means; None takes the tensor's width.
        budget: ``fixed``, ``quantile`` (Eq. 22) or ``none`` (no prefix constraint).
        budget_quantile, budget_scale, budget_cap: q, scale and cap of Eq. 22.
        gate: ``hard`` mask (Eq. 10), ``soft`` gate (Appendix C), or ``restore``: what breaks a constraint is pulled
            back toward the rollout policy.
        attenuation: g(x) of the soft gate beyond x = 1: ``inverse`` 1/x, or ``sapo`` (sigmoid, arXiv 2511.20347).
        anchor: what D_t, rho and the budget are measured from: ``rollout``, the policy mu that sampled (the paper), or
            ``proximal``, the trained policy at the start of the step; the rest of the way from mu is then a truncated
            importance weight (verl's ``algorithm.rollout_correction``).
        budget_target: share of masked tokens, in (0, 1), that one scale on delta and delta_b is steered to, step by
            step (``thresholds``); None leaves the thresholds as they are.
        restore_strength: share of a kept update's size with which ``gate=restore`` pulls back, in (0, 1].
        trace: N of NFPO's forward trace (arXiv 2605.20865): a token's weight is multiplied by the product of the next
            N - 1 tokens' ratios; 1 is none.
        trace_cap: cap on that product, at least 1.
        ratio_cap: cap on the importance weight, as in verl's DPPO (20).
        shuffle_seed: seed of ``weights=shuffled``.
        on_nonfinite: a NaN or infinite log-prob or advantage ends the run (``raise``) or costs that optimizer step
            (``skip``).

    Raises:
        KnobError: on construction, naming every knob that is out of range.
    """

    divergence: str = "tv"
    estimator: str = "binary"
    topk: int = 20
    delta: float = 0.15
    delta_b: float = 0.02
    w_min: float = 0.8
    weights: str = "linear"
    horizon: str = "response"
    max_response_length: int | None = None
    budget: str = "quantile"
    budget_quantile: float = 0.9
    budget_scale: float = 1.0
    budget_cap: float = 2.0
    gate: str = "hard"
    attenuation: str = "inverse"
    anchor: str = "rollout"
    budget_target: float | None = None
    restore_strength: float = 1.0
    trace: int = 1
    trace_cap: float = 2.0
    ratio_cap: float = 20.0
    shuffle_seed: int = 0
    on_nonfinite: str = "raise"

    def __post_init__(self):
        problems = list(knob_problems(self))
        if problems:
            raise KnobError("\n".join(problems))


def knob_problems(knobs: TrustRegionKnobs) -> Iterable[str]:
    """One sentence for every knob of ``knobs`` that is out of range; none when all are well."""
    choices = {
        "divergence": DIVERGENCES,
        "estimator": ESTIMATORS,
        "weights": WEIGHTS,
        "horizon": HORIZONS,
        "budget": BUDGETS,
        "gate": GATES,
        "anchor": ANCHORS,
        "attenuation": ATTENUATIONS,
        "on_nonfinite": ON_NONFINITE,
    }
    for name, allowed in choices.items():
        value = getattr(knobs, name)
        if value not in allowed:
            yield f"{KEY_PREFIX}.{name}={value!r} is not one of {', '.join(allowed)}."

    largest_delta = 1.0 if knobs.divergence == "tv" else math.inf
    ranges = {
        # name: (low, low included, high)
        "delta": (0.0, False, largest_delta),
        "delta_b": (0.0, True, largest_delta),
        "w_min": (0.0, False, 1.0),
        "budget_quantile": (0.0, True, 1.0),
        "budget_scale": (0.0, False, math.inf),
        "budget_cap": (1.0, True, math.inf),
        "restore_strength": (0.0, False, 1.0),
        "trace_cap": (1.0, True, math.inf),
        "ratio_cap": (1.0, True, math.inf),
    }
    for name, (low, included, high) in ranges.items():
        value = getattr(knobs, name)
        if not _is_number(value) or not (low <= value <= high) or (value == low and not included):
            yield f"{KEY_PREFIX}.{name}={value!r} is outside {'[' if included else '('}{low:g}, {high:g}]."

    target = knobs.budget_target
    if target is not None and not (_is_number(target) and 0 < target < 1):
        yield f"{KEY_PREFIX}.budget_target={target!r} is outside (0, 1); null turns it off."
    for name in ("topk", "trace"):
        value = getattr(knobs, name)
        if not _is_integer(value) or value < 1:
            yield f"{KEY_PREFIX}.{name}={value!r} must be a whole number of at least 1."
    if not _is_integer(knobs.shuffle_seed):
        yield f"{KEY_PREFIX}.shuffle_seed={knobs.shuffle_seed!r} must be a whole number."
    length = knobs.max_response_length
    if length is not None and (not _is_integer(length) or length < 1):
        yield f"{KEY_PREFIX}.max_response_length={length!r} must be a whole number of at least 1, or null."
    for own in fields(knobs):
        if _LIMITS in own.metadata:
            yield from _own_problem(own, getattr(knobs, own.name))


def knob_names(kind: type[TrustRegionKnobs] = TrustRegionKnobs) -> tuple[str, ...]:
    """Names of all trust-region knobs, in the order of their definition; of a rule's own class, its own as well."""
    return tuple(each.name for each in fields(kind))


# ---- the knobs of a rule from outside

_LIMITS = "limits"


def knob(
    default: Any,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a rule's own knobs, checked and reported like the others; for subclasses of ``TrustRegionKnobs``.

    Args:
        default: its type is what values must have: a whole number, any number (a float), true or false, or a text.
        low: smallest value; ``above`` instead if that value itself is not allowed.
        high: largest value.
        choices: the texts that are allowed.
    """
    return field(default=default, metadata={_LIMITS: (low, above, high, choices)})


VERL_KEYS = {"_target_", "loss_mode", "rollout_correction"}  # verl's PolicyLossConfig
VERL_KEYS |= {"clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta"}


def names_from_outside(names: Iterable[str]) -> list[str]:
    """Those keys of a run's ``policy_loss`` that are knobs of a rule from outside: neither ours nor verl's."""
    known = {*knob_names(), *VERL_KEYS, "rule_module"}
    return [name for name in names if name not in known]


def _own_problem(own: Field, value: Any) -> Iterable[str]:
    """A sentence if ``value`` is not of the default's type, or outside the limits."""
    key = f"{KEY_PREFIX}.{own.name}={value!r}"
    low, above, high, choices = own.metadata[_LIMITS]
    if isinstance(own.default, bool):
        if not isinstance(value, bool):
            yield f"{key} must be true or false."
    elif isinstance(own.default, str):
        if choices and value not in choices:
            yield f"{key} is not one of {', '.join(choices)}."
    elif isinstance(own.default, (int, float)):
        whole = isinstance(own.default, int)
        if not (_is_integer(value) if whole else _is_number(value)):
            yield f"{key} must be a {'whole ' if whole else ''}number."
        elif not _within(value, low, above, high):
            begin = f"({above:g}" if above is not None else "(-inf" if low is None else f"[{low:g}"
            yield f"{key} is outside {begin}, {'inf)' if high is None else f'{high:g}]'}."


def _within(value: float, low: float | None, above: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
