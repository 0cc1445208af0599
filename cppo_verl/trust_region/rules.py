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

from cppo_verl.trust_region import budget, schedule, trace
from cppo_verl.trust_region.gate import PrefixState, Thresholds, Verdict, attenuate, gate_of
from cppo_verl.trust_region.knobs import GATES, KEY_PREFIX, KnobError, TrustRegionKnobs, knob_names
from cppo_verl.trust_region.tokens import Tokens, last

Rule = Callable[[Tokens, Tensor, Any], Verdict]
RULES: dict[str, Rule] = {}
LISTENERS: list[Callable[[str], None]] = []  # called with the name of each rule that comes later


@dataclass(frozen=True)
class Capability:
    """What a rule can do and what it reads; the defaults rule nothing out.

    Attributes:
        knobs: the class of its knobs.
        reads: knobs that its decision depends on, beside those that stand before or after any rule: ``divergence``,
            ``estimator``, ``topk``, ``anchor``, ``ratio_cap``, ``on_nonfinite``, and ``trace``, ``trace_cap`` unless
            it has a weight of its own.
        gates: values of ``gate`` that it understands.
        scales: ``budget_target`` may scale its ``delta`` and ``delta_b``.
        own_weight: it brings the importance weight itself, so that ``trace`` has no effect.
        needs_kl: its thresholds are those of a KL (``divergence=kl``).
        whole_response: it keeps or drops whole responses.
        token_threshold: ``delta`` is what the D_t of a single token is held against.
    """

    knobs: type[TrustRegionKnobs] = TrustRegionKnobs
    reads: tuple[str, ...] = ()
    gates: tuple[str, ...] = GATES
    scales: bool = True
    own_weight: bool = False
    needs_kl: bool = False
    whole_response: bool = False
    token_threshold: bool = False


CAPABILITIES: dict[str, Capability] = {}
VERL_LOSSES = ("vanilla", "cispo", "gspo", "sapo")  # verl's own; the preset of vanilla is grpo
_VERLS = Capability(gates=("hard",), scales=False, own_weight=True)


def rule(name: str, knobs: type[TrustRegionKnobs] = TrustRegionKnobs, **can: Any) -> Callable[[Rule], Rule]:
    """Register a rule under the name that ``loss_mode`` takes.

    Args:
        knobs: the class that holds the rule's own knobs: a dataclass that extends ``TrustRegionKnobs`` with fields
            made by ``knobs.knob``. The rule is then given an instance of it.
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


TOKEN_KNOBS = ("delta", "gate", "attenuation", "restore_strength")
PREFIX_KNOBS = (
    *("delta_b", "budget", "budget_quantile", "budget_scale", "budget_cap"),
    *("w_min", "weights", "horizon", "max_response_length", "shuffle_seed"),
)
WHOLE_RESPONSE: dict[str, Any] = {"gates": ("hard",), "scales": False, "needs_kl": True, "whole_response": True}


@rule("dppo", reads=TOKEN_KNOBS, token_threshold=True)
def dppo(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """DPPO: keep when D_t <= delta (Eq. 3; arXiv 2602.04879).

    ``gate=soft`` and ``gate=restore`` are those of CPPO with constant weights and no prefix budget.
    """
    over = divergence > knobs.delta
    thresholds = Thresholds(knobs.delta, knobs.delta)
    return Verdict(_token_gate(tokens, divergence, over, knobs), over_token=over, thresholds=thresholds)


def _token_gate(tokens: Tokens, spending: Tensor, over_token: Tensor, knobs: TrustRegionKnobs) -> Tensor:
    """The gate of a token threshold alone, (batch, length)."""
    if knobs.gate == "soft":
        return attenuate(spending / knobs.delta, knobs.attenuation).masked_fill_(tokens.toward_rollout, 1.0)
    return gate_of(~(over_token & tokens.away_from_rollout), knobs)


@rule("cppo", reads=TOKEN_KNOBS + PREFIX_KNOBS, token_threshold=True)
def cppo(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """CPPO: keep when w_t D_t <= c_t, c_t = min(delta, delta + delta_b W_{t-1} - S_{t-1}) (Eq. 8-10, Algorithm 1).

    All valid tokens spend budget, masked ones too. With ``gate=soft`` the excess attenuates instead (Appendix C); with
    ``gate=restore`` what would be masked is turned back (``gate.gate_of``).
    """
    weights = position_weights(tokens, knobs)
    spending = weights * divergence  # Z_t
    over_token = spending > knobs.delta
    token_bound = knobs.delta / (1.0 if knobs.weights == "constant" else knobs.w_min)  # lbar = max delta / w_t
    if knobs.budget == "none":
        gate = _token_gate(tokens, spending, over_token, knobs)
        return Verdict(gate=gate, over_token=over_token, thresholds=Thresholds(token_bound, token_bound))

    delta_b = prefix_budget(tokens, divergence, knobs)
    spent, total_weight = spending.cumsum(-1), weights.cumsum_(-1)  # S_t, W_t
    spent_in_all, weight_in_all = last(spent, total_weight)
    prefix = PrefixState(spent_in_all, weight_in_all, delta_b.squeeze(-1))
    available = total_weight.mul_(delta_b).add_(knobs.delta)  # delta + delta_b W_t, what the *next* valid token may use
    if knobs.gate == "soft":
        spent[:, :1] /= knobs.delta
        spent[:, 1:] /= available[:, :-1]
        excess = torch.maximum(spending.div_(knobs.delta), spent)
        del spending, spent, available, total_weight, weights  # before more is allocated
        gate = attenuate(excess, knobs.attenuation).masked_fill_(tokens.toward_rollout, 1.0)
    else:
        gate = torch.ones_like(over_token)
        torch.le(spending[:, 1:], available.sub_(spent)[:, :-1], out=gate[:, 1:])
        del spending, spent, available, total_weight, weights  # before more is allocated
        torch.gt(gate, over_token, out=gate)  # and not over
        torch.ge(gate, tokens.away_from_rollout, out=gate)  # or not away
        gate = gate_of(gate, knobs)
    thresholds = Thresholds(token_bound, prefix.delta_b)
    return Verdict(gate=gate, over_token=over_token, prefix=prefix, thresholds=thresholds)


@rule("trm_max", reads=("delta",), token_threshold=True, **WHOLE_RESPONSE)
def trm_max(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """TRM-Max: keep the whole response when max_t D_t <= delta, with D the KL(mu||pi) (arXiv 2512.23075)."""
    return _whole_response((divergence <= knobs.delta).all(-1), tokens)


@rule("trm_avg", reads=("delta",), **WHOLE_RESPONSE)
def trm_avg(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """TRM-Avg: keep the whole response when mean_t D_t <= delta, with D the KL(mu||pi) (arXiv 2512.23075)."""
    return _whole_response(_mean(divergence, tokens.mask) <= knobs.delta, tokens)


@rule("trm_max_avg", reads=("delta", "delta_b"), **WHOLE_RESPONSE)
def trm_max_avg(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """TRM Max&Avg: both, the maximum against delta and the mean against delta_b (ablation of arXiv 2606.10968)."""
    keep_max = trm_max(tokens, divergence, knobs).gate[:, :1].any(-1)
    return _whole_response(keep_max & (_mean(divergence, tokens.mask) <= knobs.delta_b), tokens)


def _mean(divergence: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of each row, (batch,); 0 for an empty response."""
    return divergence.sum(-1, dtype=torch.float64) / mask.sum(-1).clamp_min(1)


def _whole_response(keep: Tensor, tokens: Tokens) -> Verdict:
    """A verdict on responses, (batch,) bool, spread over their tokens. There is no first clause."""
    gate = keep.unsqueeze(-1).expand_as(tokens.mask)
    return Verdict(gate=gate, over_token=~gate)


@rule("minpro", reads=(), gates=("hard",), scales=False, own_weight=True)
def minpro(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """MinPRO: no mask; the weight is rho_t times the smallest rho_j of the preceding prefix (arXiv 2601.22718).

    From that paper's abstract: a non-cumulative surrogate of the prefix ratio, "based on" the minimum token ratio of
    the preceding prefix. Ours by choice: the factor is 1 for the first token, the product is stop-graded, and it is
    capped at ``ratio_cap`` (1 + eps_high in the preset) with no lower clip, as CISPO does with its weight.
    """
    weight = tokens.ratio.nan_to_num_(nan=1.0)  # probability 0 under both policies
    smallest = torch.where(tokens.mask, weight, torch.inf).cummin(-1).values[:, :-1]
    weight = weight.clone()
    weight[:, 1:] *= torch.where(smallest.isinf(), 1.0, smallest)
    capped = weight > knobs.ratio_cap
    keep_all = tokens.mask.new_ones(()).expand_as(tokens.mask)
    return Verdict(keep_all, ~keep_all, weight=weight.clamp_max_(knobs.ratio_cap), capped=capped)


@rule("gbpo", reads=("delta",), gates=("hard",), scales=False)
def gbpo(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Verdict:
    """GBPO: pull rho_t toward 1 + delta sign(A_t), from either side and with the slope |A_t| (arXiv 2604.18578).

    Theirs: the best policy within the ratio bound is (1 + epsilon sign A) mu, and the loss is
    |A_t| |rho_t - (1 + epsilon sign A)|, whose gradient is the surrogate's below the target and its opposite beyond.
    In their LLM code the sign is that of the reward less its group's median, and the target of a reward at the median
    is 1. Ours: the sign of A_t, which is all that a policy loss is given; with rewards of 0 and 1 they differ for the
    responses of the group's majority, which theirs holds at ratio 1. Ours too: rho_t enters the weight capped at
    ``ratio_cap``, and the bound epsilon is ``delta``.
    """
    beyond = torch.where(tokens.advantages > 0, tokens.ratio > 1 + knobs.delta, tokens.ratio < 1 - knobs.delta)
    beyond &= tokens.advantages != 0
    gate = torch.where(beyond, -1.0, torch.ones((), dtype=torch.float32, device=beyond.device))
    return Verdict(gate=gate, over_token=beyond)


BUILT_IN = frozenset(RULES)


def position_weights(tokens: Tokens, knobs: TrustRegionKnobs) -> Tensor:
    """w_t of Eq. 9 and its ablations, (batch, length), 0 at invalid positions."""
    dtype = tokens.old_log_prob.dtype
    if knobs.weights == "constant":
        return schedule.constant_weights(tokens.mask, dtype)
    if knobs.horizon == "max":
        weights = schedule.linear_weights_max(tokens.mask, knobs.w_min, knobs.max_response_length, dtype)
    else:
        weights = schedule.linear_weights(tokens.mask, knobs.w_min, dtype, tokens.ordinal, tokens.invalid)
    if knobs.weights == "shuffled":
        weights = schedule.shuffle_weights(weights, tokens.mask, tokens.old_log_prob, knobs.shuffle_seed)
    return weights


def prefix_budget(tokens: Tokens, divergence: Tensor, knobs: TrustRegionKnobs) -> Tensor:
    """delta_b of each response, (batch, 1): the number given, or Eq. 22."""
    if knobs.budget == "fixed":
        return budget.fixed_budget(divergence, knobs.delta_b)
    q, scale, cap = knobs.budget_quantile, knobs.budget_scale, knobs.budget_cap
    count = tokens.ordinal[:, -1].long() if tokens.ordinal.shape[-1] else None
    return budget.quantile_budget(divergence, tokens.mask, knobs.delta_b, q, scale, cap, count)


def observe_clipping(
    tokens: Tokens, mode: str, low: float, high: float, cap: float, taus: tuple[float, float] = (1.0, 1.05)
) -> Verdict:
    """What one of verl's own losses does to each token, for metrics only (Eq. 2, CISPO, GSPO, SAPO).

    ``vanilla`` drops the update beyond the clip range on the side of the advantage, ``gspo`` that of a whole response,
    by the geometric mean of its ratios; ``cispo`` cuts the weight instead; ``sapo`` attenuates by 4 s (1 - s) with
    s = sigmoid(tau (rho - 1)). Any other loss is reported as masking nothing.

    Args:
        taus: SAPO's temperatures for advantages above 0 and for the others.
    """
    ratio = _response_ratio(tokens) if mode == "gspo" else tokens.ratio
    above, below = ratio > 1 + high, ratio < 1 - low
    nothing = torch.zeros_like(tokens.mask)
    if mode in ("vanilla", "gspo"):
        clipped = (above & (tokens.advantages > 0)) | (below & (tokens.advantages < 0))
        capped = (tokens.ratio > cap) & (tokens.advantages < 0) if mode == "vanilla" else nothing
        return Verdict(~clipped, clipped, capped=capped)
    if mode == "sapo":
        tau = torch.where(tokens.advantages > 0, *taus)
        s = torch.sigmoid((ratio - 1) * tau)
        return Verdict((4 * s * (1 - s)).to(ratio.dtype), ~nothing, capped=nothing)
    return Verdict(~nothing, nothing, capped=above | below if mode == "cispo" else nothing)


def _response_ratio(tokens: Tokens) -> Tensor:
    """exp of the mean log-ratio over a response's valid tokens, (batch, 1) (GSPO, arXiv 2507.18071)."""
    log_ratio = tokens.log_ratio.nan_to_num(nan=0.0).masked_fill_(tokens.invalid, 0.0)
    return _mean(log_ratio, tokens.mask).exp().to(log_ratio.dtype).unsqueeze(-1)


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
            divergence = divergence.to(tokens.log_prob.dtype).masked_fill(tokens.invalid, 0.0)
        verdict = RULES[name](tokens, divergence, knobs)
        if knobs.trace > 1 and verdict.weight is None:
            verdict = trace.traced(tokens, verdict, knobs)
        return verdict, divergence
