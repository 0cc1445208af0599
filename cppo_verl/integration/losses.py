"""Every rule of ``trust_region.rules`` as a policy loss in verl's registry, and the loss that our trainer installs."""

import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
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
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs
from cppo_verl.trust_region.loss import token_losses
from cppo_verl.trust_region.rules import BUILT_IN, LISTENERS, RULES, observe_clipping
from cppo_verl.trust_region.thresholds import scaled
from cppo_verl.trust_region.tokens import Tokens

logger = logging.getLogger(__name__)

PREFIX = metrics.PREFIX
SUM_PREFIX = PREFIX + "sum/"
COUNT_PREFIX = PREFIX + "count/"
SCALE = "threshold_scale"  # in a batch's non-tensor data: what delta and delta_b are multiplied with
BEHIND = "versions_behind"  # in the batch: (batch,) int64, of the oldest weights that a response was sampled with


# Gets log pi, log mu and advantages as they came, the cap on the weight, the tokens, D_t and the verdict.
Show = Callable[[tuple[Tensor, ...], float, Tokens, Tensor, Verdict], None]


@dataclasses.dataclass(frozen=True)
class Call:
    """What our trainer's loss hands to a rule beside the arguments of verl's registry, and what comes back."""

    divergence: Tensor | None = None  # (batch, length) D_t of the top-K estimator; None for the binary one
    scale: float = 1.0  # of delta and delta_b
    show: Show | None = None
    summaries: list[metrics.MetricSums] | None = None  # None under another trainer, which gets micro-batch means


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
    """Put every rule into verl's policy-loss registry, and from now on each that comes from outside."""

    def put(name: str) -> None:
        there = core_algos.POLICY_LOSS_REGISTRY.get(name)
        if there is not None and there.__module__ != __name__:
            if name not in BUILT_IN:  # it can take another name: ``require_registered`` says so
                return
            logger.warning("policy loss %r of %s gives way to cppo_verl's", name, there.__module__)
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

    found, said = POLICY_LOSS_REGISTRY.get(mode), f"{KEY_PREFIX}.loss_mode={mode}"
    if mode not in RULES or (found is not None and found.__module__ == __name__):
        return
    if found is not None:
        raise KnobError(f"{said}: {found.__module__} has a loss of that name; give yours another, or unload that.")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    raise KnobError(
        f"{said}: on {socket.gethostname()} that name is not registered, so the plug-in cppo_verl was not loaded. "
        f"VERL_USE_EXTERNAL_PLUGINS={policy} there; install cppo_verl on every node and unset the variable."
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
        given = log_prob, old_log_prob, advantages
        show = None if call.show is None else partial(call.show, given, knobs.ratio_cap)
        losses = partial(token_losses, name, *given, knobs=knobs, divergence=call.divergence)
        try:
            matrix, summary = losses(mask=response_mask, watch=show, importance=rollout_is_weights)
        except FloatingPointError as error:
            tokens = Tokens.of(*given, response_mask)
            summary = _of_the_finite(error, knobs, tokens, lambda mask: losses(mask=mask)[1])
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


def _of_the_finite(
    error: FloatingPointError, knobs: TrustRegionKnobs, tokens: Tokens, judge: Callable[[Tensor], metrics.MetricSums]
) -> metrics.MetricSums:
    """What ``judge`` says of the responses that are finite, given a mask, when the knobs say that the step is skipped.

    The caller then returns a NaN loss: a NaN gradient of one rank is NaN on all, and verl leaves the optimizer alone.

    Raises:
        FloatingPointError: ``error``, when they say that it ends the run.
    """
    if knobs.on_nonfinite == "raise":
        raise error
    logger.error("%s", error)
    bad = torch.stack(list(metrics.nonfinite(tokens).values())).any(0)
    summary = judge(tokens.mask & ~bad.any(-1, keepdim=True))
    return dataclasses.replace(summary, maxima={**summary.maxima, "nonfinite_tokens_max": float(bad.sum())})


def _report(summary: metrics.MetricSums) -> dict[str, float]:
    """To our trainer's loss; under another trainer, what the registry's function returns."""
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
    from verl.utils import tensordict_utils
    from verl.utils.metric import AggregationType, Metric
    from verl.workers.utils.losses import ppo_loss

    from cppo_verl.integration.topk import logits

    if student_logits is not None:
        return logits.gather_logits(student_logits, data, config.policy_loss.topk)
    require_registered(config.policy_loss.loss_mode)
    knobs, watch, handed, mass = knobs_of(config), looks.Watch.of(data), None, None
    if knobs.estimator == "topk":
        handed, mass = logits.divergence_of(model_output, data, knobs.divergence, knobs.topk)
    summaries: list[metrics.MetricSums] = []

    def show(given: tuple[Tensor, ...], cap: float, tokens: Tokens, divergence: Tensor, verdict: Verdict) -> None:
        if BEHIND in data.keys():  # noqa: SIM118 - a TensorDict
            log_mu = data.select("rollout_log_probs").to_padded_tensor()["rollout_log_probs"]
            summaries.append(staleness.summarise(tokens, divergence, verdict, data[BEHIND], log_mu))
        if mass is not None:
            summaries.append(metrics.MetricSums({"topk_mass": (mass * tokens.counted).sum().item()}, {}, {}))
        if watch is not None:
            columns = dict(zip(("log_pi", "log_mu", "advantages"), given, strict=True))
            columns |= {} if handed is None else {"divergence": divergence}  # else log-probs determine it
            watch.see_verdict(tokens, verdict, cap, **columns)

    scale = tensordict_utils.get_non_tensor_data(data=data, key=SCALE, default=1.0)
    with calling(Call(handed, scale, show, summaries)):
        loss, reported = ppo_loss(config, model_output, data, dp_group)
        if not summaries:
            loss = _observe(config, model_output, data, loss)
    whole = metrics.combine(summaries)
    sums: dict[str, Any] = {SUM_PREFIX + name: value for name, value in whole.sums.items()}
    sums |= {COUNT_PREFIX + name: value for name, value in whole.counts.items()}
    maxima: dict[str, Any] = {PREFIX + name: value for name, value in whole.maxima.items()}
    reported |= Metric.from_dict(sums, AggregationType.SUM) | Metric.from_dict(maxima, AggregationType.MAX)
    if watch is not None:
        reported[looks.METRIC] = [watch.seen]
    return loss, reported


def _observe(config, model_output, data, loss: Tensor) -> Tensor:
    """The same metrics and refusals for a loss of verl's own, so that curves compare across rules; the loss."""
    from verl.workers.utils.padding import no_padding_2_padding

    padded = data.select("response_mask", "old_log_probs", "advantages").to_padded_tensor()
    given = no_padding_2_padding(model_output["log_probs"], data), padded["old_log_probs"], padded["advantages"]
    call, knobs, cap = _call.get(), knobs_of(config), config.clip_ratio_c
    clips = config.clip_ratio_low, config.clip_ratio_high, cap, (config.tau_pos, config.tau_neg)

    @torch.no_grad()
    def judge(mask: Tensor, show: Show | None = None) -> metrics.MetricSums:
        tokens = Tokens.of(*given, mask)
        handed = call.divergence
        divergence = tokens.divergence(knobs.divergence) if handed is None else handed.masked_fill(~tokens.mask, 0.0)
        verdict = observe_clipping(tokens, knobs.loss_mode, *clips)
        if show is not None:
            show(given, cap, tokens, divergence, verdict)
        return metrics.summarise(tokens, divergence, verdict, cap)

    try:
        _report(judge(padded["response_mask"], call.show))
    except FloatingPointError as error:
        _report(_of_the_finite(error, knobs, Tokens.of(*given, padded["response_mask"]), judge))
        return loss * torch.nan
    return loss


def fold(*updates: Mapping[str, list]) -> dict[str, Any]:
    """The metrics of a step from verl's of each actor update, in which a value is a list with an entry a mini-batch.

    Their lists are joined, and every ``sum/`` and ``count/`` is replaced by its exact ratio over the step, and by that
    of the first mini-batch (trained weights still equal the rollout's) under ``first_update/``.
    """
    reported = dict(updates[0])
    for update in updates[1:]:
        reported = {key: values + update.get(key, []) for key, values in reported.items()}
    folded = {key: values for key, values in reported.items() if not key.startswith((SUM_PREFIX, COUNT_PREFIX))}
    for key, totals in reported.items():
        name = key.removeprefix(SUM_PREFIX)
        if name == key:
            continue
        count = reported[COUNT_PREFIX + metrics.denominator_of(name)]
        if "_by_staleness/" in name and not sum(count):
            continue  # no response is that old
        folded[PREFIX + name] = [metrics.ratio(sum(totals), sum(count))]
        if name in (*metrics.FIRST_UPDATE, *staleness.FIRST_UPDATE):
            folded[f"{PREFIX}first_update/{name}"] = [metrics.ratio(totals[0], count[0])]
    return folded | {name: [value] for name, value in staleness.effective_sample_sizes(folded).items()}
