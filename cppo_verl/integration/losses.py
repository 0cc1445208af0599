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
from tensordict import TensorDict
from torch import Tensor

from cppo_verl.integration import looks
from cppo_verl.integration.config import knobs_of
from cppo_verl.trust_region import extensions, metrics, staleness
from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs
from cppo_verl.trust_region.loss import Watch, token_losses
from cppo_verl.trust_region.rules import BUILT_IN, LISTENERS, RULES, observe_clipping
from cppo_verl.trust_region.thresholds import scaled
from cppo_verl.trust_region.tokens import Tokens

logger = logging.getLogger(__name__)

PREFIX = metrics.PREFIX
SUM_PREFIX = PREFIX + "sum/"
COUNT_PREFIX = PREFIX + "count/"
SCALE = "threshold_scale"  # in a batch's non-tensor data: what delta and delta_b are multiplied with
BEHIND = "versions_behind"  # in the batch: (batch,) int64, of the oldest weights that a response was sampled with

Given = tuple[Tensor, Tensor, Tensor]  # log pi, log mu and advantages as verl hands them to a rule, (batch, length)
Judge = Callable[..., tuple[Tensor, metrics.MetricSums]]  # of a mask and more, by name: losses, and the metrics' sums


@dataclasses.dataclass(frozen=True)
class Call:
    """What our trainer's loss hands to a rule beside the arguments of verl's registry, and what comes back."""

    divergence: Tensor | None = None  # (batch, length) D_t of the top-K estimator; None for the binary one
    scale: float = 1.0  # of delta and delta_b
    watch: Watch | None = None
    summaries: list[metrics.MetricSums] | None = None  # None under another trainer, which gets micro-batch means

    def report(self, summary: metrics.MetricSums) -> dict[str, float]:
        """Keep it for our trainer's loss; under another trainer, what the registry's function returns."""
        if self.summaries is None:
            return summary.means()
        self.summaries.append(summary)
        return {}


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
        judge = partial(token_losses, name, *given, knobs=knobs, divergence=call.divergence)
        seen = {"watch": call.watch, "importance": rollout_is_weights}
        matrix, summary = _judged(judge, knobs, given, response_mask, **seen)
        if matrix is None:
            loss = log_prob.sum() * torch.nan
        elif summary.counts["tokens"] == 0:  # nothing to learn from, and verl's mean would divide by 0
            loss = matrix.sum()
        else:
            batch = {"loss_mask": response_mask, "loss_agg_mode": loss_agg_mode, **config.global_batch_info}
            loss = agg_loss(loss_mat=matrix, **batch)
        return loss, call.report(summary)

    compute.__name__ = compute.__qualname__ = f"policy_loss_{name}"
    compute.__doc__ = RULES[name].__doc__
    return compute


def _judged(
    judge: Judge, knobs: TrustRegionKnobs, given: Given, mask: Tensor, **seen: Any
) -> tuple[Tensor | None, metrics.MetricSums]:
    """``judge(mask=mask, **seen)``; where that raises for what is not finite and the knobs say that the step is
    skipped, no losses and the sums of the responses that are finite.

    The caller then returns a NaN loss: a NaN gradient of one rank is NaN on all, and verl leaves the optimizer alone.

    Raises:
        FloatingPointError: when the knobs say that it ends the run.
    """
    try:
        return judge(mask=mask, **seen)
    except FloatingPointError as error:
        if knobs.on_nonfinite == "raise":
            raise
        logger.error("%s", error)
        tokens = Tokens.of(*given, mask)
        bad = torch.stack(list(metrics.nonfinite(tokens).values())).any(0)
        _, summary = judge(mask=tokens.mask & ~bad.any(-1, keepdim=True))
        maxima = {**summary.maxima, "nonfinite_tokens_max": float(bad.sum())}
        return None, dataclasses.replace(summary, maxima=maxima)


def trust_region_loss(config, model_output=None, data=None, dp_group=None, student_logits=None):
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
    rule = config.policy_loss.loss_mode
    require_registered(rule)
    knobs, recorded, handed, mass = knobs_of(config), looks.Watch.of(data), None, None
    cap = knobs.ratio_cap if rule in RULES else config.clip_ratio_c
    if knobs.estimator == "topk":
        handed, mass = logits.divergence_of(model_output, data, knobs.divergence, knobs.topk)
    summaries: list[metrics.MetricSums] = []

    def watch(tokens: Tokens, divergence: Tensor, verdict: Verdict) -> None:
        if BEHIND in data.keys():  # noqa: SIM118 - a TensorDict
            log_mu = data.select("rollout_log_probs").to_padded_tensor()["rollout_log_probs"]
            summaries.append(staleness.summarise(tokens, divergence, verdict, data[BEHIND], log_mu))
        if mass is not None:
            summaries.append(metrics.MetricSums({"topk_mass": (mass * tokens.counted).sum().item()}, {}, {}))
        if recorded is not None:
            columns = dict(zip(("log_pi", "log_mu", "advantages"), _given(model_output, data)[0], strict=True))
            columns |= {} if handed is None else {"divergence": divergence}  # else log-probs determine it
            recorded.see_verdict(tokens, verdict, cap, **columns)

    scale = tensordict_utils.get_non_tensor_data(data=data, key=SCALE, default=1.0)
    with calling(Call(handed, scale, watch, summaries)):
        loss, reported = ppo_loss(config, model_output, data, dp_group)
    if rule not in RULES:
        loss, summary = _observed(config, loss, *_given(model_output, data), handed, watch)
        summaries.append(summary)
    whole = metrics.combine(summaries)
    sums: dict[str, Any] = {SUM_PREFIX + name: value for name, value in whole.sums.items()}
    sums |= {COUNT_PREFIX + name: value for name, value in whole.counts.items()}
    maxima: dict[str, Any] = {PREFIX + name: value for name, value in whole.maxima.items()}
    reported |= Metric.from_dict(sums, AggregationType.SUM) | Metric.from_dict(maxima, AggregationType.MAX)
    if recorded is not None:
        reported[looks.METRIC] = [recorded.seen]
    return loss, reported


def _given(model_output: Mapping[str, Tensor], data: TensorDict) -> tuple[Given, Tensor]:
    """A micro-batch as verl hands it to a rule, and the mask, (batch, length)."""
    from verl.workers.utils.padding import no_padding_2_padding

    padded = data.select("response_mask", "old_log_probs", "advantages").to_padded_tensor()
    log_pi = no_padding_2_padding(model_output["log_probs"], data)
    return (log_pi, padded["old_log_probs"], padded["advantages"]), padded["response_mask"]


def _observed(
    config, loss: Tensor, given: Given, mask: Tensor, handed: Tensor | None, watch: Watch
) -> tuple[Tensor, metrics.MetricSums]:
    """A loss of verl's own, with the same metrics and refusals, so that curves compare across rules."""
    knobs, cap = knobs_of(config), config.clip_ratio_c
    clips = config.clip_ratio_low, config.clip_ratio_high, cap, (config.tau_pos, config.tau_neg)

    @torch.no_grad()
    def judge(mask: Tensor, watch: Watch | None = None) -> tuple[Tensor, metrics.MetricSums]:
        tokens = Tokens.of(*given, mask)
        divergence = tokens.divergence(knobs.divergence) if handed is None else handed.masked_fill(~tokens.mask, 0.0)
        verdict = observe_clipping(tokens, knobs.loss_mode, *clips)
        if watch is not None:
            watch(tokens, divergence, verdict)
        return loss, metrics.summarise(tokens, divergence, verdict, cap)

    kept, summary = _judged(judge, knobs, given, mask, watch=watch)
    return loss * torch.nan if kept is None else kept, summary


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
