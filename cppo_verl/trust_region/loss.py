"""The whole way in one call, for any trainer: log-probs, advantages and a mask in, a loss and its metrics out."""

from collections.abc import Callable

import torch
from torch import Tensor

from cppo_verl.trust_region import metrics
from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate
from cppo_verl.trust_region.tokens import Tokens

Aggregate = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[Tokens, Tensor, Verdict], None]


def token_losses(
    rule: str,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    knobs: TrustRegionKnobs,
    divergence: Tensor | None = None,
    watch: Watch | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, metrics.MetricSums]:
    """The loss of each token before any mean, and the sums behind the metrics.

    Args:
        rule: its name in ``rules.RULES``, such as ``cppo``.
        log_prob: (batch, length) log pi(y_t|s_t) of the policy being trained, any floating dtype, with its graph.
        old_log_prob: (batch, length) log mu(y_t|s_t) of the policy that sampled, by the engine that sampled.
        advantages: (batch, length) A_t.
        mask: (batch, length) bool or 0/1, valid response tokens; padding and holes may stand anywhere.
        knobs: what the rule reads.
        divergence: (batch, length) D_t where it comes from more than the sampled tokens (``topk``); None takes the
            binary one.
        watch: gets the tokens, their D_t and the verdict once the rule has decided; for metrics of one's own.
        importance: (batch, length) a further weight without gradient (verl's ``rollout_is_weights``); what stands where
            the token is invalid or masked does not matter.

    Returns:
        (batch, length) losses, differentiable in ``log_prob`` and 0 where a token adds nothing; and the sums.
        Tokens that the rule masks are part of the batch: a mean divides by them too.

    Raises:
        ValueError: the shapes differ.
        KnobError: ``knobs.estimator`` asks for a ``divergence`` that was not given.
        FloatingPointError: a log-prob, an advantage, or the importance of a token that is kept is not finite; says
            which tensor, how many tokens, which rows.
    """
    tokens = Tokens.of(log_prob, old_log_prob, advantages, mask)
    verdict, divergence = evaluate(rule, tokens, knobs, divergence)
    if watch is not None:
        watch(tokens, divergence, verdict)
    summary = metrics.summarise(tokens, divergence, verdict, knobs.ratio_cap)
    coefficient = coefficients(tokens, verdict, knobs.ratio_cap, importance)
    if importance is not None and not bool(coefficient.isfinite().all()):
        raise FloatingPointError(
            "non-finite importance weights (rollout_is_weights) at tokens that are kept: the step was not taken."
        )
    return loss_matrix(log_prob, tokens, coefficient), summary


@torch.no_grad()
def coefficients(tokens: Tokens, verdict: Verdict, ratio_cap: float, importance: Tensor | None = None) -> Tensor:
    """-A_t min(rho_t, ratio_cap) gate_t, (batch, length): what multiplies log pi(y_t|s_t) in the loss (Eq. 11).

    A rule may bring a weight of its own instead of min(rho, cap); a gate below 0 turns an update round.
    """
    weight = tokens.ratio.clamp_max(ratio_cap) if verdict.weight is None else verdict.weight
    coefficient = (weight * tokens.advantages).neg_()
    if verdict.gate.dtype == torch.bool:
        coefficient = torch.where(verdict.gate, coefficient, 0.0)
    else:
        coefficient *= verdict.gate
    return coefficient if importance is None else torch.where(coefficient == 0, 0.0, coefficient * importance)


def loss_matrix(log_prob: Tensor, tokens: Tokens, coefficient: Tensor) -> Tensor:
    """coefficient * log pi(y_t|s_t), (batch, length), differentiable in ``log_prob``.

    What stands at invalid positions leaves the product before autograd sees it; so does a token of probability 0 under
    pi, whose gradient A rho grad log pi vanishes with rho.
    """
    with_gradient = tokens.mask & (tokens.log_prob > -torch.inf)
    return torch.where(with_gradient, log_prob, 0.0) * coefficient


def token_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """Sum over the valid tokens of the batch divided by their number, 0-d; 0 without any."""
    return losses.sum() / mask.sum().clamp_min(1)


def policy_loss(
    rule: str,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    knobs: TrustRegionKnobs | None = None,
    divergence: Tensor | None = None,
    aggregate: Aggregate = token_mean,
) -> tuple[Tensor, dict[str, float]]:
    """Loss (0-d, to call ``backward`` on) and metrics of one batch. Arguments and errors as for ``token_losses``.

    Args:
        knobs: None takes the paper's.
        aggregate: from the (batch, length) losses and the mask to the loss.
    """
    knobs = TrustRegionKnobs() if knobs is None else knobs
    losses, summary = token_losses(rule, log_prob, old_log_prob, advantages, mask, knobs, divergence)
    return aggregate(losses, mask), summary.means()
