"""What a trust-region run must satisfy before anything starts, each violation as one sentence with its remedy.

The presets attach ``StartCheck`` to Hydra, which runs it on the composed config before verl's ``main``; the trainer
asks again inside Ray.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.specifiers import SpecifierSet

from cppo_verl import presets
from cppo_verl.integration import anchor, attention, rule_checks, topk
from cppo_verl.integration.cpu import limits
from cppo_verl.launch import sizes
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import KEY_PREFIX
from cppo_verl.trust_region.rules import RULES

SUPPORTED_VERL = SpecifierSet(">=0.9.0,<0.9.2")
MODES = ("sync", "colocate_async", "separate_async")
MODE = "trainer.v1.trust_region.mode"
EXECUTOR = "actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend"
STEERED = ("cppo", "dppo")  # rules whose thresholds budget_target can scale
VERL_CLIPPING = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}
SECRET = re.compile(r"(_KEY|_TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)


class RunConfigError(ValueError):
    """The composed config cannot give a correct trust-region run; the message lists every problem."""


def mode_of(config: DictConfig) -> str:
    """Which of verl's trainers the trust region goes over, as the config says it."""
    return str(OmegaConf.select(config, MODE, default="sync"))


def require(config: DictConfig, here: bool = False) -> None:
    """Check a composed verl config; with ``here`` also that this environment has what it asks for.

    Raises:
        RunConfigError: listing every problem found, each with key, value and remedy.
    """
    problems = [*run_problems(config), *(here_problems(config) if here else ())]
    if problems:
        raise RunConfigError("this trust-region run cannot start:\n" + "\n".join(f"  - {p}" for p in problems))


def run_problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each thing that stands in the way of the run described by ``config``, on any machine."""
    if metadata.version("verl") not in SUPPORTED_VERL:
        yield f"verl {metadata.version('verl')} is outside {SUPPORTED_VERL}: pip install verl==0.9.1."
    try:
        knobs = OmegaConf.select(config, KEY_PREFIX) or {}
        if "actor_rollout_ref" in (config.get(presets.GROUP) or {}):  # where such a preset lands
            yield f"{presets.GROUP}: a preset has to begin with the line '# @package _global_'; nothing of it was set."
        yield from rule_checks.problems(knobs)
        yield from _size_problems(config)
        yield from _rollout_policy_problems(config)
        yield from _surrounding_problems(config, str(knobs.get("loss_mode")))
        yield from _mode_problems(config, knobs)
        yield from _checkpoint_problems(config)
        yield from _reproducible_problems(config, knobs)
        yield from _record_problems(config)
        yield from _secret_problems(config)
    except OmegaConfBaseException as error:  # a value that is missing, or refers to one that is
        yield f"{' '.join(str(error).split())}."


def here_problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each thing that ``config`` asks for and this environment does not have."""
    try:
        yield from attention.here_problems(config)
        yield from limits.problems(config)
    except OmegaConfBaseException as error:
        yield f"{' '.join(str(error).split())}."


def _size_problems(config: DictConfig) -> Iterator[str]:
    values = {key: OmegaConf.select(config, key) for key in sizes.KEYS}
    yield from sizes.problems(values, _heads(OmegaConf.select(config, "actor_rollout_ref.model.path")))


def _heads(model_path: Any) -> sizes.Heads | None:
    path = sizes.model_config(model_path)
    return None if path is None else sizes.heads_of(path)


def _rollout_policy_problems(config: DictConfig) -> Iterator[str]:
    """mu must be the policy that sampled, by the rollout engine's own log-probs."""
    read = OmegaConf.select
    if not read(config, "trainer.use_v1", default=True):
        yield "trainer.use_v1=False: the legacy trainer replaces the loss in bypass mode; set trainer.use_v1=True."
    calculated = read(config, "actor_rollout_ref.rollout.calculate_log_probs", default=False)
    bypass = read(config, "algorithm.rollout_correction.bypass_mode", default=False)
    if anchor.is_proximal(config):
        if not calculated:
            yield (
                f"actor_rollout_ref.rollout.calculate_log_probs={calculated} with {KEY_PREFIX}.anchor=proximal: the "
                "weight from the rollout to the proximal policy needs the rollout's log-probs; set it to True."
            )
    elif not (calculated and bypass):
        yield (
            f"actor_rollout_ref.rollout.calculate_log_probs={calculated} and "
            f"algorithm.rollout_correction.bypass_mode={bypass}: the rule measures the distance from the policy that "
            "sampled, so both must be True. A preset sets them; an override on the command line took that back. To "
            f"measure from log-probs that the trainer recomputes, set {KEY_PREFIX}.anchor=proximal."
        )
    rollout = read(config, "actor_rollout_ref.rollout")
    if rollout.get("logprobs_mode", "processed_logprobs") not in ("processed_logprobs", None):
        yield (
            f"actor_rollout_ref.rollout.logprobs_mode={rollout.logprobs_mode}: log-probs without the sampling "
            "temperature are not those of the policy that sampled; set it to processed_logprobs."
        )
    for key, neutral in (("top_p", 1), ("top_k", -1)):
        if rollout.get(key, neutral) not in (neutral, 0 if key == "top_k" else neutral):
            yield (
                f"actor_rollout_ref.rollout.{key}={rollout.get(key)}: tokens are then not drawn from the policy whose "
                f"log-probs are reported; set it to {neutral} for training (validation has its own val_kwargs)."
            )
    if not _at_least(0, rollout.get("temperature", 1.0)) or rollout.get("temperature", 1.0) == 0:
        yield f"actor_rollout_ref.rollout.temperature={rollout.get('temperature')} must be above 0 for training."
    ranks = rollout.get("tensor_model_parallel_size", 1)
    if OmegaConf.select(config, EXECUTOR) == "uni" and ranks != 1:
        yield f"{EXECUTOR}=uni runs one rank, and tensor_model_parallel_size={ranks} wants more; set it to mp."


def _surrounding_problems(config: DictConfig, mode: str) -> Iterator[str]:
    read = OmegaConf.select
    actor, knobs = read(config, "actor_rollout_ref.actor"), read(config, KEY_PREFIX) or {}
    if mode in RULES:
        for key, default in VERL_CLIPPING.items():
            if actor.get(key, default) not in (default, None):
                yield (
                    f"actor_rollout_ref.actor.{key}={actor.get(key)} has no effect under loss_mode={mode}; "
                    f"use {KEY_PREFIX}.{'ratio_cap' if key == 'clip_ratio_c' else 'delta'} instead."
                )
    if mode.startswith("trm_") and knobs.get("divergence") != "kl":
        yield f"{KEY_PREFIX}.divergence={knobs.get('divergence')!r}: TRM is defined on KL(mu||pi); set it to kl."
    if knobs.get("estimator", "binary") == "topk":
        yield from topk.problems(config)
    if actor.get("loss_agg_mode") == "seq-mean-token-sum-norm" and actor.get("loss_scale_factor") is None:
        yield (
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm without actor_rollout_ref.actor."
            "loss_scale_factor divides by each micro-batch's longest response; set it to data.max_response_length."
        )
    grouped = read(config, "algorithm.adv_estimator") == "group_relative"
    if grouped and not _at_least(2, read(config, "actor_rollout_ref.rollout.n", default=1)):
        yield (
            "algorithm.adv_estimator=group_relative with actor_rollout_ref.rollout.n="
            f"{read(config, 'actor_rollout_ref.rollout.n', default=1)}: a group of one has no advantage; "
            "set n to 2 or more."
        )


def _mode_problems(config: DictConfig, knobs: Mapping[str, Any]) -> Iterator[str]:
    read, mode = OmegaConf.select, mode_of(config)
    if mode not in MODES:
        yield f"{MODE}={mode!r} is not one of {', '.join(MODES)}."
    if mode != "sync" and read(config, "trainer.v1.trust_region.reproducible"):
        yield (
            f"trainer.v1.trust_region.reproducible=True with {MODE}={mode}: which responses a step gets depends on "
            f"when they end; set {MODE}=sync."
        )
    loss = knobs.get("loss_mode")
    if knobs.get("budget_target") is not None and loss not in (*STEERED, *extensions.from_outside()):
        yield (
            f"{KEY_PREFIX}.budget_target={knobs.get('budget_target')} with loss_mode={loss}: only the thresholds of "
            f"{' and '.join(STEERED)} scale; set it to null."
        )
    if mode == "separate_async":
        yield from _separate_problems(config)


def _separate_problems(config: DictConfig) -> Iterator[str]:
    """What verl's trainer asserts once Ray has started."""
    read, rollout = OmegaConf.select, "actor_rollout_ref.rollout"
    syncs = read(config, "trainer.v1.separate_async.parameter_sync_step")
    batch, mini = read(config, "data.train_batch_size"), read(config, "actor_rollout_ref.actor.ppo_mini_batch_size")
    if batch != syncs * mini:
        yield (
            f"data.train_batch_size={batch} with {MODE}=separate_async must be trainer.v1.separate_async."
            f"parameter_sync_step={syncs} times actor_rollout_ref.actor.ppo_mini_batch_size={mini}: set it to "
            f"{syncs * mini}."
        )
    for key in ("nnodes", "n_gpus_per_node"):
        if not _at_least(1, read(config, f"{rollout}.{key}")):
            yield (
                f"{rollout}.{key}={read(config, f'{rollout}.{key}')} with {MODE}=separate_async: rollout has GPUs of "
                "its own there; say how many."
            )
    if not read(config, "actor_rollout_ref.hybrid_engine", default=True):
        yield (
            f"actor_rollout_ref.hybrid_engine=False with {MODE}=separate_async: verl 0.9.1 ends in a TypeError of its "
            "own log line there; set it to True."
        )
    backend = read(config, f"{rollout}.checkpoint_engine.backend")
    if backend == "naive":
        yield (
            f"{rollout}.checkpoint_engine.backend=naive with {MODE}=separate_async: weights have to cross to other "
            "GPUs; set it to nccl (gloo on the CPU platform)."
        )


def _checkpoint_problems(config: DictConfig) -> Iterator[str]:
    read = OmegaConf.select
    for key, value in (("max_actor_ckpt_to_keep", 1), ("remove_previous_ckpt_in_save", True)):
        if read(config, f"trainer.{key}") == value:
            yield (
                f"trainer.{key}={value}: verl deletes the last checkpoint before the next one is complete, and a run "
                "that dies in between has none. Set trainer.max_actor_ckpt_to_keep to 2, which takes no more room at "
                "the peak."
            )


def _reproducible_problems(config: DictConfig, knobs: Mapping[str, Any]) -> Iterator[str]:
    key, read = "trainer.v1.trust_region.reproducible", OmegaConf.select
    if not read(config, key):
        return
    if knobs.get("estimator") == "topk":
        yield f"{key}=True with {KEY_PREFIX}.estimator=topk: each brings its own agent loop; choose one of them."
    if read(config, "algorithm.filter_groups.enable"):
        yield f"{key}=True with algorithm.filter_groups.enable=True: the order of refilled prompts is that of time."


def _record_problems(config: DictConfig) -> Iterator[str]:
    key, read = "trainer.v1.trust_region", OmegaConf.select
    for name, low in {"record": 0, "record_limit_mb": 1, "record_seed": 0}.items():
        value = read(config, f"{key}.{name}", default=low)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            yield f"{key}.{name}={value!r} must be a whole number of at least {low}."
    mode = read(config, "trainer.v1.trainer_mode")
    if read(config, f"{key}.record") and mode in topk.VERLS_TRAINERS:
        yield f"{key}.record has no effect with trainer.v1.trainer_mode={mode}; set that to trust_region."


def _secret_problems(config: DictConfig) -> Iterator[str]:
    """verl, Hydra and Ray write the whole config into logs."""
    key = "ray_kwargs.ray_init.runtime_env.env_vars"
    for name in OmegaConf.select(config, key) or ():
        if SECRET.search(str(name)):
            yield (
                f"{key}.{name} would be written to the run's logs. Export {name} in the shell that starts the run "
                "(or that starts Ray, on each node): workers inherit it."
            )


def _at_least(low: float, value: Any) -> bool:
    return isinstance(value, (int, float)) and value >= low
