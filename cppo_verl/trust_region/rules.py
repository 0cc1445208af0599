"""Which token updates are kept: one function a rule, from (tokens, divergence, knobs) to a verdict.

Every token rule keeps an update that moves pi back toward mu, A_t (rho_t - 1) <= 0; they differ in what else they keep.
A rule sees (batch, length) tensors, runs under no_grad in float32 or float64, and never looks at invalid positions.
``RULES`` maps the name that ``loss_mode`` takes to its function. A rule from outside is one more function under
``rule`` (``extensions`` brings it into a process; docs/extending.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cppo_verl.trust_region.budget import prefix_budget
from cppo_verl.trust_region.gate import PrefixState, Thresholds, Verdict, attenuate, restore
from cppo_verl.trust_region.knobs import GATES, KEY_PREFIX, PREFIX_KNOBS, KnobError, TrustRegionKnobs, knob_names
from cppo_verl.trust_region.schedule import position_weights
from cppo_verl.trust_region.tokens import Tokens
from cppo_verl.trust_region.trace import traced

Rule = Callable[[Tokens, Tensor, Any], Verdict]
RULES: dict[str, Rule] = {}
LISTENERS: list[Callable[[str], None]] = []  # called with the name of each rule that comes later


@dataclass(frozen=True)
class Capability:
    """What a rule can do and what it reads; the defaults rule nothing out.

    ``reads`` are the knobs that its decision depends on, beside those that stand before or after any rule:
    ``divergence``, ``estimator``, ``topk``, ``anchor``, ``ratio_cap``, ``on_nonfinite``, and ``trace``, ``trace_cap``
    unless it has a weight of its own.
    """

    knobs: type[TrustRegionKnobs] = TrustRegionKnobs  # the class of its knobs
    reads: tuple[str, ...] = ()
    gates: tuple[str, ...] = GATES  # values of ``gate`` that it understands
    scales: bool = True  # ``budget_target`` may scale its ``delta`` and ``delta_b``
    own_weight: bool = False  # it brings the importance weight itself, so that ``trace`` has no effect
    needs_kl: bool = False  # its thresholds are those of a KL (``divergence=kl``)
    token_threshold: bool = False  # ``delta`` is what the D_t of a single token is held against
    prefix_budget: bool = False  # it weighs D_t by position, and holds what a prefix spends against ``delta_b``


CAPABILITIES: dict[str, Capability] = {}
VERL_LOSSES = ("vanilla", "cispo", "gspo", "sapo")  # verl's own; the preset of vanilla is grpo
_VERLS = Capability(gates=("hard",), scales=False, own_weight=True)


def rule(name: str, knobs: type[TrustRegionKnobs] = TrustRegionKnobs, **can: Any) -> Callable[[Rule], Rule]:
    """Register a rule under the name that ``loss_mode`` takes.

    Args:
        knobs: the class of the rule's own knobs, whose instance it is then given: a dataclass that extends
            ``TrustRegionKnobs`` with fields made by ``knobs.knob``.
        can: fields of ``Capability``; a rule that says nothing may read all of its knobs.

    Raises:
        KnobError: the name is taken, or ``knobs`` is no dataclass.
    """

    def register(function: Rule) -> Rule:
        if name in RULES:
            raise KnobError(f"a rule {name!r} is there already, of {RULES[name].__module__}: give yours another name")
        if not is_dataclass(knobs) or "__dataclass_fields__" not in vars(knobs):
            raise KnobError(f"{knobs.__name__}, the knobs of rule {name!r}, is no dataclass: put @dataclass over it")
        RULES[name] = function
        CAPABILITIES[name] = Capability(knobs, **{"reads": knob_names(knobs), **can})
        for listener in LISTENERS:
            listener(name)
        return function

    return register


def capability(name: str) -> Capability:
    """What the rule can do; of an unknown name, all that a rule may."""
    return _VERLS if name in VERL_LOSSES else CAPABILITIES.get(name, Capability(reads=knob_names()))


def knobs_of_rule(name: str) -> type[TrustRegionKnobs]:
    """The class of the rule's knobs; ours for a rule without own ones, and for an unknown name."""
    return capability(name).knobs


def evaluate(
    name: str, tokens: Tokens, knobs: TrustRegionKnobs, divergence: Tensor | None = None
) -> tuple[Verdict, Tensor]:
    """Verdict of the named rule and the D_t it was based on, (batch, length), under no_grad.

    Args:
        divergence: D_t of the ``topk`` estimator, (batch, length); None takes the binary one from ``tokens``.

    Raises:
        KnobError: for an estimator that needs more than the sampled tokens' log-probs, when D_t is not given.
    """
    if knobs.estimator != "binary" and divergence is None:
        raise KnobError(
            f"{KEY_PREFIX}.estimator={knobs.estimator!r} needs top-K log-probs, which this loss was not given"
        )
    with torch.no_grad():
        if divergence is None:
            divergence = tokens.divergence(knobs.divergence)
        else:
            divergence = divergence.to(tokens.log_prob.dtype).masked_fill(~tokens.mask, 0.0)
        verdict = RULES[name](tokens, divergence, knobs)
        if knobs.trace > 1 and verdict.weight is None:
            verdict = traced(tokens, verdict, knobs)
        return verdict, divergence


# ---- rules that decide by token


TOKEN_KNOBS = ("delta", "gate", "attenuation", "restore_strength")


@rule("dppo", reads=TOKEN_KNOBS, token_threshold=True)
def dppo(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """DPPO: keep when D_t <= delta (Eq. 3; arXiv 2602.04879)."""
    return token_threshold(tokens, divergence, knobs, knobs.delta)


@rule("cppo", reads=TOKEN_KNOBS + PREFIX_KNOBS, token_threshold=True, prefix_budget=True)
def cppo(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """CPPO: keep when w_t D_t <= c_t, c_t = min(delta, delta + delta_b W_{t-1} - S_{t-1}) (Eq. 8-10, Algorithm 1).

    S_t = sum_{j<=t} w_j D_j is what the tokens up to t have spent, masked ones too, and W_t = sum_{j<=t} w_j. With
    ``gate=soft`` the excess attenuates instead (Appendix C); with ``gate=restore`` what would be masked is turned back.
    """
    weights = position_weights(tokens, knobs)  # w_t (Eq. 9)
    spending = weights * divergence  # Z_t = w_t D_t
    token_bound = knobs.delta / (1.0 if knobs.weights == "constant" else knobs.w_min)  # lbar = max delta / w_t
    if knobs.budget == "none":
        return token_threshold(tokens, spending, knobs, token_bound)

    delta_b = prefix_budget(tokens, divergence, knobs)
    spent, granted = spending.cumsum(-1), weights.cumsum(-1)  # S_t, W_t
    prefix = PrefixState(*(x[:, -1:].squeeze(-1) for x in (spent, granted, delta_b)))
    allowance = (granted * delta_b).add_(knobs.delta)  # delta + delta_b W_t
    if knobs.gate == "soft":
        gate = soft_gate(tokens, torch.maximum(spending / knobs.delta, spent / before(allowance, knobs.delta)), knobs)
    else:
        threshold = before(allowance.sub_(spent), knobs.delta).clamp_(max=knobs.delta)  # c_t (Eq. 8)
        gate = hard_gate(tokens, spending <= threshold, knobs)
    return Verdict(gate, spending > knobs.delta, prefix, thresholds=Thresholds(token_bound, prefix.delta_b))


def before(values: Tensor, first: float) -> Tensor:
    """At each token the value of the one before it, and ``first`` at the first, (batch, length)."""
    return pad(values[:, :-1], (1, 0), value=first)


def token_threshold(tokens: Tokens, spending: Tensor, knobs: TrustRegionKnobs, token_bound: float) -> Verdict:
    """Keep when Z_t <= delta, whatever came before; ``token_bound`` is the bound on D_t that this makes."""
    over = spending > knobs.delta
    soft = knobs.gate == "soft"
    gate = soft_gate(tokens, spending / knobs.delta, knobs) if soft else hard_gate(tokens, ~over, knobs)
    return Verdict(gate, over, thresholds=Thresholds(token_bound, token_bound))


def hard_gate(tokens: Tokens, within: Tensor, knobs: TrustRegionKnobs) -> Tensor:
    """M_t = 1[A_t (rho_t - 1) <= 0 or Z_t <= c_t] (Eq. 10), bool; or what ``gate=restore`` makes of it."""
    keep = tokens.toward_rollout | within
    return restore(keep, knobs.restore_strength) if knobs.gate == "restore" else keep


def soft_gate(tokens: Tokens, excess: Tensor, knobs: TrustRegionKnobs) -> Tensor:
    """g(x_t), and 1 for the first clause (Appendix C), floating."""
    return attenuate(excess, knobs.attenuation).masked_fill(tokens.toward_rollout, 1.0)


@rule("minpro", gates=("hard",), reads=(), scales=False, own_weight=True)
def minpro(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """MinPRO: no mask; the weight is rho_t times the smallest rho_j of the preceding prefix (arXiv 2601.22718).

    From that paper's abstract. Ours by choice: the factor is 1 for the first token, the product is stop-graded, and it
    is capped at ``ratio_cap`` (1 + eps_high in the preset) with no lower clip, as CISPO does with its weight.
    """
    smallest = before(tokens.ratio.masked_fill(~tokens.mask, torch.inf).cummin(-1).values, torch.inf)  # over j < t
    weight = tokens.ratio * smallest.masked_fill(smallest.isinf(), 1.0)
    nothing = torch.zeros_like(tokens.mask)
    return Verdict(~nothing, nothing, weight=weight.clamp_max(knobs.ratio_cap), capped=weight > knobs.ratio_cap)


@rule("gbpo", gates=("hard",), reads=("delta",), scales=False)
def gbpo(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """GBPO: pull rho_t toward 1 + delta sign(A_t), from either side and with the slope |A_t| (arXiv 2604.18578).

    Theirs is the loss |A_t| |rho_t - (1 + epsilon sign A)|, whose gradient is the surrogate's below the target and its
    opposite beyond; in their LLM code the sign is that of the reward less its group's median, and the target at the
    median is 1. Ours: epsilon is ``delta``, rho_t enters the weight capped at ``ratio_cap``, and the sign is A_t's, all
    that a policy loss is given; with rewards of 0 and 1 they differ for the group's majority, which theirs holds at 1.
    """
    up, down = tokens.advantages > 0, tokens.advantages < 0
    beyond = (up & (tokens.ratio > 1 + knobs.delta)) | (down & (tokens.ratio < 1 - knobs.delta))
    return Verdict(restore(~beyond, 1.0), over_token=beyond)


# ---- rules that decide by response; there is no first clause

WHOLE_RESPONSE: dict[str, Any] = {"gates": ("hard",), "scales": False, "needs_kl": True}


@rule("trm_max", reads=("delta",), token_threshold=True, **WHOLE_RESPONSE)
def trm_max(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """TRM-Max: keep the whole response when max_t D_t <= delta, with D the KL(mu||pi) (arXiv 2512.23075)."""
    return whole_response(tokens, (divergence <= knobs.delta).all(-1))


@rule("trm_avg", reads=("delta",), **WHOLE_RESPONSE)
def trm_avg(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """TRM-Avg: keep the whole response when mean_t D_t <= delta, with D the KL(mu||pi) (arXiv 2512.23075)."""
    return whole_response(tokens, mean(divergence, tokens.mask) <= knobs.delta)


@rule("trm_max_avg", reads=("delta", "delta_b"), **WHOLE_RESPONSE)
def trm_max_avg(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """TRM Max&Avg: max_t D_t <= delta and mean_t D_t <= delta_b (ablation of arXiv 2606.10968)."""
    average_is_within = mean(divergence, tokens.mask) <= knobs.delta_b
    return whole_response(tokens, (divergence <= knobs.delta).all(-1) & average_is_within)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of each row, (batch,) float64; 0 for an empty response."""
    return values.sum(-1, dtype=torch.float64) / mask.sum(-1).clamp_min(1)


def whole_response(tokens: Tokens, keep: Tensor) -> Verdict:
    """A verdict on responses, (batch,) bool, spread over their tokens."""
    gate = keep.unsqueeze(-1).expand_as(tokens.mask)
    return Verdict(gate, over_token=~gate)


BUILT_IN = frozenset(RULES)


def observe_clipping(
    tokens: Tokens, mode: str, low: float, high: float, cap: float, taus: tuple[float, float] = (1.0, 1.05)
) -> Verdict:
    """What one of verl's own losses does to each token, for metrics only (Eq. 2, CISPO, GSPO, SAPO).

    ``vanilla`` drops the update beyond the clip range on the side of the advantage, and beyond ``cap`` that of a token
    with A < 0 (its dual clip); ``gspo`` (arXiv 2507.18071) that of a whole response, by the geometric mean of its
    ratios; ``cispo`` cuts the weight instead; ``sapo`` attenuates by 4 s (1 - s) with s = sigmoid(tau (rho - 1)), tau
    by ``taus`` for advantages above 0 and for the others. Any other loss is reported as masking nothing.
    """
    ratio = tokens.ratio
    if mode == "gspo":
        ratio = mean(tokens.log_ratio, tokens.mask).exp().to(ratio.dtype).unsqueeze(-1)
    above, below = ratio > 1 + high, ratio < 1 - low
    up, down, nothing = tokens.advantages > 0, tokens.advantages < 0, torch.zeros_like(tokens.mask)
    if mode in ("vanilla", "gspo"):
        clipped = (up & above) | (down & (below | (ratio > cap) if mode == "vanilla" else below))
        return Verdict(~clipped, clipped, capped=nothing)
    if mode == "sapo":
        s = torch.sigmoid((ratio - 1) * torch.where(up, *taus))
        return Verdict((4 * s * (1 - s)).to(ratio.dtype), ~nothing, capped=nothing)
    return Verdict(~nothing, nothing, capped=above | below if mode == "cispo" else nothing)
