"""Every rule of ``trust_region.rules`` as a policy loss in verl's registry, and the loss wrapper of our trainer."""

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cppo_verl.integration import looks
from cppo_verl.integration.config import knobs_of
from cppo_verl.trust_region import extensions, metrics, staleness
from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError
from cppo_verl.trust_region.loss import token_losses
from cppo_verl.trust_region.rules import BUILT_IN, LISTENERS, RULES, evaluate, observe_clipping
from cppo_verl.trust_region.thresholds import scaled
from cppo_verl.trust_region.tokens import Tokens

logger = logging.getLogger(__name__)

PREFIX = metrics.PREFIX
SUM_PREFIX = PREFIX + "sum/"
COUNT_PREFIX = PREFIX + "count/"
SCALE = "threshold_scale"  # in a batch's non-tensor data: what delta and delta_b are multiplied with
BEHIND = "versions_behind"  # in the batch: (batch,) int64, of the oldest weights that a response was sampled with

Decide = Callable[[Tokens, Tensor | None], tuple[Verdict, Tensor]]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of our trainer's loss: what goes to the rule beside the arguments of verl's registry, and comes back.

    Attributes:
        divergence: (batch, length) D_t of the top-K estimator; None for the binary one.
        scale: of delta and delta_b.
        behind: (batch,) int64 versions behind; None in the synchronous mode.
        rollout_log_prob: (batch, length) log mu(y_t|s_t); set with ``behind``.
        summaries: where the sums go; None under another trainer, which gets micro-batch means instead.
    """

    divergence: Tensor | None = None
    scale: float = 1.0
    behind: Tensor | None = None
    rollout_log_prob: Tensor | None = None
    summaries: list[metrics.MetricSums] | None = None


_call: ContextVar[Call] = ContextVar("trust_region_call", default=Call())  # noqa: B039 - frozen


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Let the losses that are called inside see ``call``."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def register(core_algos) -> None:
    """Put every rule into verl's policy-loss registry, and from now on each that comes from outside.

    A name that verl has already is reported. Ours wins; a rule from outside does not, since it can take another name.
    """

    def put(name: str) -> None:
        present = core_algos.POLICY_LOSS_REGISTRY.get(name)
        if present is not None and present.__module__ != __name__:
            theirs = f"{present.__module__}.{present.__qualname__}"
            if name not in BUILT_IN:
                logger.warning("policy loss %r of %s is left to %s", name, RULES[name].__module__, theirs)
                return
            logger.warning(
                "policy loss %r is registered by %s and by cppo_verl; cppo_verl's is used. "
                "Set VERL_USE_EXTERNAL_PLUGINS=none for the other one.",
                name,
                theirs,
            )
        core_algos.register_policy_loss(name)(policy_loss(name, core_algos.agg_loss))

    for name in RULES:
        put(name)
    LISTENERS.append(put)
    extensions.load_installed()


def require_registered(mode: str) -> None:
    """The rule must be ours in this very process too.

    Raises:
        KnobError: when verl did not load the plug-in here, or another package took the name.
    """
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    found = POLICY_LOSS_REGISTRY.get(mode)
    if mode not in RULES or (found is not None and found.__module__ == __name__):
        return
    if found is not None and mode not in BUILT_IN:
        raise KnobError(
            f"{KEY_PREFIX}.loss_mode={mode}: {found.__module__} has a loss of that name; give the rule another name."
        )
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    raise KnobError(
        f"{KEY_PREFIX}.loss_mode={mode}: on {socket.gethostname()} that name is "
        + (f"taken by {found.__module__}" if found else "not registered, so the plug-in cppo_verl was not loaded")
        + f". VERL_USE_EXTERNAL_PLUGINS={policy} there; install cppo_verl on every node and unset the variable."
    )


def policy_loss(name: str, agg_loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """The named rule on the shared surrogate, with the signature of verl's registry."""

    def compute(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config=None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        call = _call.get()
        knobs = scaled(knobs_of(config), call.scale)
        tensors = log_prob, old_log_prob, advantages, response_mask
        watch = partial(_show, knobs.ratio_cap, tensors[:3])
        try:
            matrix, summary = token_losses(name, *tensors, knobs, call.divergence, watch, rollout_is_weights)
        except FloatingPointError as error:
            decide = partial(_evaluate, name, knobs)
            summary = _go_on_without(error, knobs, Tokens.of(*tensors), call.divergence, decide, knobs.ratio_cap)
            return log_prob.sum() * torch.nan, _report(summary)
        if summary.counts["tokens"] == 0:  # nothing to learn from, and verl's mean would divide by 0
            return matrix.sum(), _report(summary)
        loss = agg_loss(
            loss_mat=matrix, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info
        )
        return loss, _report(summary)

    compute.__name__ = compute.__qualname__ = f"policy_loss_{name}"
    compute.__doc__ = RULES[name].__doc__
    return compute


def _evaluate(name: str, knobs, tokens: Tokens, divergence: Tensor | None) -> tuple[Verdict, Tensor]:
    return evaluate(name, tokens, knobs, divergence)


def _go_on_without(
    error: FloatingPointError, knobs, tokens: Tokens, handed: Tensor | None, decide: Decide, ratio_cap: float
) -> metrics.MetricSums:
    """The sums of the responses that are finite, when the knobs say that such a step is skipped.

    The caller then returns a NaN loss: a NaN gradient of one rank is NaN on all, and verl leaves the optimizer alone.

    Raises:
        FloatingPointError: ``error``, when they say that it ends the run.
    """
    if knobs.on_nonfinite == "raise":
        raise error
    logger.error("%s", error)
    bad = torch.stack(list(metrics.nonfinite(tokens).values())).any(0)
    keep = ~bad.any(-1)
    tokens = tokens.rows(keep)
    verdict, divergence = decide(tokens, None if handed is None else handed[keep].nan_to_num())
    summary = metrics.summarise(tokens, divergence, verdict, ratio_cap)
    return dataclasses.replace(summary, maxima={**summary.maxima, "nonfinite_tokens_max": float(bad.sum())})


def _show(ratio_cap: float, given: tuple[Tensor, ...], tokens: Tokens, divergence: Tensor, verdict: Verdict) -> None:
    """Let those see the tokens, their D_t and the verdict of this micro-batch who want to.

    Args:
        given: log pi, log mu and advantages as they came, invalid positions included.
    """
    call, recorded = _call.get(), looks.watching()
    if call.summaries is not None and call.behind is not None and call.rollout_log_prob is not None:
        call.summaries.append(staleness.summarise(tokens, divergence, verdict, call.behind, call.rollout_log_prob))
    if recorded is not None:
        recorded.see_verdict(given, tokens, verdict, None if call.divergence is None else divergence, ratio_cap)


def _report(summary: metrics.MetricSums) -> dict[str, float]:
    summaries = _call.get().summaries
    if summaries is None:
        return summary.means()
    summaries.append(summary)
    return {}


def trust_region_loss(config, model_output=None, data=None, dp_group=None, student_logits=None, data_format=None):
    """verl's ``ppo_loss``, with the trust region's metrics typed so that they add up over micro-batches and ranks.

    verl averages what a policy loss returns over micro-batches of unequal size, and averages maxima too. Here the
    sums and counts travel as such; ``fold`` divides them on the driver.

    verl's engine calls it twice a micro-batch when the trainer asked for that (``estimator=topk``): first as a logits
    processor, with ``student_logits``, then as the loss.
    """
    if student_logits is not None:
        from cppo_verl.integration.topk.logits import gather_logits

        return gather_logits(student_logits, data, config.policy_loss.topk)
    require_registered(config.policy_loss.loss_mode)
    with looks.watch(data) as watch:
        loss, reported = _loss_of_call(config, model_output, data, dp_group)
    if watch is not None:
        reported[looks.METRIC] = [watch.seen]
    return loss, reported


def _loss_of_call(config, model_output, data, dp_group):
    from verl.utils.metric import AggregationType, Metric
    from verl.workers.utils.losses import ppo_loss

    divergence, extra = _topk_divergence(config, model_output, data)
    call = _call_of(data, divergence)
    with calling(call):
        loss, reported = ppo_loss(config, model_output, data, dp_group)
        if not call.summaries:
            loss = _observe(config, model_output, data, loss)
    for summary in call.summaries or ():
        typed = {SUM_PREFIX + k: (v, AggregationType.SUM) for k, v in {**summary.sums, **extra}.items()}
        typed |= {COUNT_PREFIX + k: (v, AggregationType.SUM) for k, v in summary.counts.items()}
        typed |= {PREFIX + k: (v, AggregationType.MAX) for k, v in summary.maxima.items()}
        reported.update({k: Metric(value=v, aggregation=how) for k, (v, how) in typed.items()})
    return loss, reported


def _call_of(data, divergence: Tensor | None) -> Call:
    from verl.utils import tensordict_utils

    scale = tensordict_utils.get_non_tensor_data(data=data, key=SCALE, default=1.0)
    if BEHIND not in data.keys():  # noqa: SIM118 - a TensorDict
        return Call(divergence, scale, summaries=[])
    rollout = data.select("rollout_log_probs").to_padded_tensor()["rollout_log_probs"]
    return Call(divergence, scale, data[BEHIND], rollout, [])


def _topk_divergence(config, model_output, data) -> tuple[Tensor | None, dict[str, float]]:
    """D_t of the top-K estimator and sums to report beside it; nothing for the binary estimator."""
    if getattr(config.policy_loss, "estimator", "binary") != "topk":
        return None, {}
    from cppo_verl.integration.topk.logits import divergence_of

    divergence, mass = divergence_of(model_output, data, config.policy_loss.divergence, config.policy_loss.topk)
    padded = data.select("response_mask", "advantages").to_padded_tensor()
    weighted = padded["advantages"] * padded["response_mask"]
    counted = padded["response_mask"].bool() & (weighted != 0).any(-1, keepdim=True)
    return divergence, {"topk_mass": (mass * counted).sum().item()}


def _observe(config, model_output, data, loss: Tensor) -> Tensor:
    """The same metrics and refusals for a loss of verl's own, so that curves compare across rules; the loss."""
    from verl.workers.utils.padding import no_padding_2_padding

    log_prob = no_padding_2_padding(model_output["log_probs"], data)
    padded = data.select("response_mask", "old_log_probs", "advantages").to_padded_tensor()
    tokens = Tokens.of(log_prob, padded["old_log_probs"], padded["advantages"], padded["response_mask"])
    knobs, handed, cap = knobs_of(config), _call.get().divergence, config.clip_ratio_c

    def decide(tokens: Tokens, handed: Tensor | None) -> tuple[Verdict, Tensor]:
        divergence = tokens.divergence(knobs.divergence) if handed is None else handed.masked_fill(~tokens.mask, 0.0)
        clips = config.clip_ratio_low, config.clip_ratio_high, cap, (config.tau_pos, config.tau_neg)
        return observe_clipping(tokens, knobs.loss_mode, *clips), divergence

    with torch.no_grad():
        verdict, divergence = decide(tokens, handed)
        _show(cap, (log_prob, padded["old_log_probs"], padded["advantages"]), tokens, divergence, verdict)
    try:
        _report(metrics.summarise(tokens, divergence, verdict, cap))
    except FloatingPointError as error:
        _report(_go_on_without(error, knobs, tokens, handed, decide, cap))
        return loss * torch.nan
    return loss


def tokens_of(reported: Sequence[Mapping[str, list]]) -> float:
    """Tokens that the metrics of some actor updates stand for."""
    return sum(sum(part.get(COUNT_PREFIX + "tokens", [])) for part in reported)


def joined(reported: Sequence[Mapping[str, list]]) -> dict[str, list]:
    """The workers' metrics of several actor updates as one, in their order; for ``fold``."""
    return {key: [value for part in reported for value in part.get(key, [])] for key in reported[0]}


def fold(reported: dict[str, Any]) -> dict[str, Any]:
    """Turn the sums and counts of a step into metrics.

    Args:
        reported: verl's metrics of one actor update: each value a list with an entry a mini-batch.

    Returns:
        The same, with every ``sum/`` and ``count/`` replaced by its exact ratio over the step, and for the first
        mini-batch (trained weights still equal the rollout's) under ``first_update/``.
    """
    sums = {k.removeprefix(SUM_PREFIX): v for k, v in reported.items() if k.startswith(SUM_PREFIX)}
    counts = {k.removeprefix(COUNT_PREFIX): v for k, v in reported.items() if k.startswith(COUNT_PREFIX)}
    folded = {k: v for k, v in reported.items() if not k.startswith((SUM_PREFIX, COUNT_PREFIX))}
    for name, totals in sums.items():
        count = counts[metrics.denominator_of(name)]
        if "_by_staleness/" in name and not sum(count):
            continue  # no response is that old
        folded[PREFIX + name] = [metrics.ratio(sum(totals), sum(count))]
        if name in (*metrics.FIRST_UPDATE, *staleness.FIRST_UPDATE):
            folded[f"{PREFIX}first_update/{name}"] = [metrics.ratio(totals[0], count[0])]
    return folded | {name: [value] for name, value in staleness.effective_sample_sizes(folded).items()}
