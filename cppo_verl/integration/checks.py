"""What a trust-region run must satisfy before anything starts, each violation as one sentence with its remedy.

The presets attach ``StartCheck`` to Hydra, which runs it on the composed config before verl's ``main``; the trainer
asks again inside Ray. What trains all the same, but not as a preset would, is told by ``start_table``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.specifiers import SpecifierSet

from cppo_verl import presets
from cppo_verl.integration import anchor, attention, engines, rule_checks, start_table, topk
from cppo_verl.integration.cpu import limits
from cppo_verl.launch import paths, sizes
from cppo_verl.trust_region.knobs import KEY_PREFIX
from cppo_verl.trust_region.rules import capability

SUPPORTED_VERL = SpecifierSet(">=0.9.0,<0.9.2")
MODES = ("sync", "colocate_async", "separate_async")
OPTIONS = "trainer.v1.trust_region"
MODE = f"{OPTIONS}.mode"
COUNTS = {"record": 0, "record_limit_mb": 1, "record_seed": 0}  # options that are whole numbers, and their least
KNOWN = ("mode", "skip_zero_variance", "reproducible", "topk_cutoff", "poll_interval", *COUNTS)
ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
EXECUTOR = f"{ROLLOUT}.engine_kwargs.vllm.distributed_executor_backend"
SECRET = re.compile(r"(_KEY|_TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)


class RunConfigError(ValueError):
    """The composed config cannot give a correct trust-region run; the message lists every problem."""


def is_asked_for(config: DictConfig) -> bool:
    """Whether a composed verl config has a preset, or the knobs of one, in it."""
    return _is_misplaced(config) or str(OmegaConf.select(config, f"{KEY_PREFIX}._target_")).startswith("cppo_verl.")


def _is_misplaced(config: DictConfig) -> bool:
    """Whether a preset lies where Hydra puts one that names no other place."""
    return "actor_rollout_ref" in (config.get(presets.GROUP) or {})


def mode_of(config: DictConfig) -> str:
    """Which of verl's trainers the trust region goes over, as the config says it."""
    return str(OmegaConf.select(config, MODE, default="sync"))


def require(config: DictConfig, here: bool = False, overrides: Sequence[str] = ()) -> None:
    """Check a composed verl config.

    Args:
        here: also whether this environment has what it asks for.
        overrides: that it was composed of; without them nothing can be said against what they contradict.

    Raises:
        RunConfigError: listing every problem found, each with key, value and remedy.
    """
    problems = [*run_problems(config, overrides), *(here_problems(config) if here else ())]
    if problems:
        raise RunConfigError("this trust-region run cannot start:\n" + "\n".join(f"  - {p}" for p in problems))


def run_problems(config: DictConfig, overrides: Sequence[str] = ()) -> Iterator[str]:
    """One sentence for each thing that stands in the way of the run described by ``config``, on any machine."""
    if metadata.version("verl") not in SUPPORTED_VERL:
        yield f"verl {metadata.version('verl')} is outside {SUPPORTED_VERL}: pip install verl==0.9.1."
    try:
        knobs = OmegaConf.select(config, KEY_PREFIX) or {}
        if _is_misplaced(config):
            yield f"{presets.GROUP}: a preset has to begin with the line '# @package _global_'; nothing of it was set."
        yield from start_table.contradictions(config, overrides)
        yield from rule_checks.problems(knobs)
        values = {key: _plain(OmegaConf.select(config, key)) for key in sizes.KEYS}
        yield from sizes.problems(values, _heads(OmegaConf.select(config, "actor_rollout_ref.model.path")))
        yield from _rollout_policy_problems(config)
        yield from _loss_problems(config, knobs)
        yield from _trainer_problems(config, knobs)
        yield from _option_problems(config, knobs)
        yield from _secret_problems(config)
    except OmegaConfBaseException as error:  # a value that is missing, or refers to one that is
        yield f"{' '.join(str(error).split())}."


def here_problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each thing that ``config`` asks for and this environment does not have."""
    try:
        yield from paths.problems(config)
        yield from attention.here_problems(config)
        yield from limits.problems(config)
    except OmegaConfBaseException as error:
        yield f"{' '.join(str(error).split())}."


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _heads(model_path: Any) -> sizes.Heads | None:
    path = sizes.model_config(model_path)
    return None if path is None else sizes.heads_of(path)


def _rollout_policy_problems(config: DictConfig) -> Iterator[str]:
    """mu must be the policy that sampled, by the rollout engine's own log-probs."""
    read = OmegaConf.select
    calculated = read(config, f"{ROLLOUT}.calculate_log_probs", default=False)
    bypass = read(config, "algorithm.rollout_correction.bypass_mode", default=False)
    if anchor.is_proximal(config) and not calculated:
        yield (
            f"{ROLLOUT}.calculate_log_probs={calculated} with {KEY_PREFIX}.anchor=proximal: the weight from the "
            "rollout to the proximal policy needs the rollout's log-probs; set it to True."
        )
    if not anchor.is_proximal(config) and not (calculated and bypass):
        yield (
            f"{ROLLOUT}.calculate_log_probs={calculated} and algorithm.rollout_correction.bypass_mode={bypass}: the "
            "rule measures the distance from the policy that sampled, so both must be True. A preset sets them; an "
            "override on the command line took that back. To measure from log-probs that the trainer recomputes, set "
            f"{KEY_PREFIX}.anchor=proximal."
        )
    for key, neutral, effect in (
        ("logprobs_mode", ("processed_logprobs", None), "log-probs are then not those of the policy that sampled"),
        ("top_p", (1,), "tokens are then not drawn from the policy whose log-probs are reported"),
        ("top_k", (-1, 0), "tokens are then not drawn from the policy whose log-probs are reported"),
    ):
        value = read(config, f"{ROLLOUT}.{key}", default=neutral[0])
        if value not in neutral:
            yield f"{ROLLOUT}.{key}={value}: {effect}; set it to {neutral[0]} (validation has its own val_kwargs)."
    temperature = read(config, f"{ROLLOUT}.temperature", default=1.0)
    if not isinstance(temperature, int | float) or not temperature > 0:
        yield f"{ROLLOUT}.temperature={temperature} must be above 0 for training."
    ranks = read(config, f"{ROLLOUT}.tensor_model_parallel_size", default=1)
    if read(config, EXECUTOR) == "uni" and ranks != 1:
        yield f"{EXECUTOR}=uni runs one rank, and tensor_model_parallel_size={ranks} wants more; set it to mp."


def _loss_problems(config: DictConfig, knobs: Mapping[str, Any]) -> Iterator[str]:
    read, mode = OmegaConf.select, str(knobs.get("loss_mode"))
    if capability(mode).needs_kl and knobs.get("divergence") != "kl":
        yield f"{KEY_PREFIX}.divergence={knobs.get('divergence')!r}: TRM is defined on KL(mu||pi); set it to kl."
    if knobs.get("budget_target") is not None and not capability(mode).scales:
        yield (
            f"{KEY_PREFIX}.budget_target={knobs.get('budget_target')} with loss_mode={mode}, which has no threshold "
            "that scales; set it to null."
        )
    if knobs.get("estimator", "binary") == "topk":
        yield from topk.problems(config)
    yield from engines.problems(config)
    task_rewards = "distillation.distillation_loss.use_task_rewards"
    if read(config, "distillation.enabled") and not read(config, task_rewards):
        yield (
            f"distillation.enabled=True with {task_rewards}=False: verl's distillation loss then trains alone, and "
            f"nothing of the rule {mode}; set {task_rewards}=True, or leave the preset out."
        )
    scale = read(config, f"{ACTOR}.loss_scale_factor")
    if read(config, f"{ACTOR}.loss_agg_mode") == "seq-mean-token-sum-norm" and scale is None:
        yield (
            f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm without {ACTOR}.loss_scale_factor divides by each "
            "micro-batch's longest response; set it to data.max_response_length."
        )
    n = read(config, f"{ROLLOUT}.n", default=1)
    if read(config, "algorithm.adv_estimator") == "group_relative" and not _at_least(2, n):
        yield (
            f"algorithm.adv_estimator=group_relative with {ROLLOUT}.n={n}: a group of one has no advantage; set n to "
            "2 or more."
        )


def _trainer_problems(config: DictConfig, knobs: Mapping[str, Any]) -> Iterator[str]:
    read, mode, trainer = OmegaConf.select, mode_of(config), OmegaConf.select(config, "trainer.v1.trainer_mode")
    if not read(config, "trainer.use_v1", default=True):
        yield "trainer.use_v1=False: the legacy trainer replaces the loss in bypass mode; set trainer.use_v1=True."
    if trainer in MODES:
        yield (
            f"trainer.v1.trainer_mode={trainer} beside the preset's trust_region: verl's own trainer has no exact "
            "metrics, no skipping, no alarms, and none of the options of the preset. Leave it out, and set "
            f"{MODE}={trainer}: the trust region then goes over that trainer."
        )
    if mode not in MODES:
        yield f"{MODE}={mode!r} is not one of {', '.join(MODES)}."
    if mode == "separate_async":
        yield from _separate_problems(config)
    for key, value in (("max_actor_ckpt_to_keep", 1), ("remove_previous_ckpt_in_save", True)):
        if read(config, f"trainer.{key}") == value:
            yield (
                f"trainer.{key}={value}: verl deletes the last checkpoint before the next one is complete, and a run "
                "that dies in between has none. Set trainer.max_actor_ckpt_to_keep to 2, which takes no more room at "
                "the peak."
            )


def _separate_problems(config: DictConfig) -> Iterator[str]:
    """What verl's trainer asserts once Ray has started."""
    read, said = OmegaConf.select, f"with {MODE}=separate_async"
    syncs = read(config, "trainer.v1.separate_async.parameter_sync_step")
    batch, mini = read(config, "data.train_batch_size"), read(config, f"{ACTOR}.ppo_mini_batch_size")
    if batch != syncs * mini:
        yield (
            f"data.train_batch_size={batch} {said} must be trainer.v1.separate_async.parameter_sync_step={syncs} times "
            f"{ACTOR}.ppo_mini_batch_size={mini}: set it to {syncs * mini}."
        )
    for key in ("nnodes", "n_gpus_per_node"):
        value = read(config, f"{ROLLOUT}.{key}")
        if not _at_least(1, value):
            yield f"{ROLLOUT}.{key}={value} {said}: rollout has GPUs of its own there; say how many."
    if not read(config, "actor_rollout_ref.hybrid_engine", default=True):
        yield (
            f"actor_rollout_ref.hybrid_engine=False {said}: verl 0.9.1 ends in a TypeError of its own log line there; "
            "set it to True."
        )
    if read(config, f"{ROLLOUT}.checkpoint_engine.backend") == "naive":
        yield (
            f"{ROLLOUT}.checkpoint_engine.backend=naive {said}: weights have to cross to other GPUs; set it to nccl "
            "(gloo on the CPU platform)."
        )


def _option_problems(config: DictConfig, knobs: Mapping[str, Any]) -> Iterator[str]:
    """Of what stands under ``trainer.v1.trust_region``."""
    read, options = OmegaConf.select, OmegaConf.select(config, OPTIONS) or {}
    for name in options:
        if name not in KNOWN:
            yield f"{OPTIONS}.{name}={options[name]} is no option; there are {', '.join(KNOWN)}."
    for name, low in COUNTS.items():
        value = options.get(name, low)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            yield f"{OPTIONS}.{name}={value!r} must be a whole number of at least {low}."
    if not options.get("reproducible"):
        return
    said = f"{OPTIONS}.reproducible=True with"
    if mode_of(config) != "sync":
        yield f"{said} {MODE}={mode_of(config)}: which responses a step gets depends on when they end; set {MODE}=sync."
    if knobs.get("estimator") == "topk":
        yield f"{said} {KEY_PREFIX}.estimator=topk: each brings its own agent loop; choose one of them."
    if read(config, "algorithm.filter_groups.enable"):
        yield f"{said} algorithm.filter_groups.enable=True: the order of refilled prompts is that of time."
    if read(config, f"{ROLLOUT}.name") != "vllm":
        yield f"{said} {ROLLOUT}.name={read(config, f'{ROLLOUT}.name')}: only vLLM is given a seed a response."


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
