"""What a trust-region run must satisfy before anything starts, each violation as one sentence with its remedy.

The presets attach ``StartCheck`` to Hydra, which runs it on the composed config before verl's ``main``; the trainer
asks again inside Ray. What trains all the same, but not as a preset would, is told by ``start_table``.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import metadata
from operator import not_
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.specifiers import SpecifierSet

from cppo_verl import presets
from cppo_verl.errors import UserError
from cppo_verl.integration import attention, start_table
from cppo_verl.integration.config import config_class
from cppo_verl.integration.losses import require_registered
from cppo_verl.integration.topk import MANAGER, MANAGER_KEY, MAX_LOGPROBS_KEY
from cppo_verl.launch import paths, sizes
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import GATES, KEY_PREFIX, KnobError, knob_names, names_from_outside
from cppo_verl.trust_region.rules import RULES, VERL_LOSSES, capability, knobs_of_rule

SUPPORTED_VERL = SpecifierSet(">=0.9.0,<0.9.2")
MODES = ("sync", "colocate_async", "separate_async")
OPTIONS, ROLLOUT, ACTOR = "trainer.v1.trust_region", "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
MODE = f"{OPTIONS}.mode"
GROUPED = "algorithm.adv_estimator=group_relative"
BACKEND = "actor_rollout_ref.model.fused_kernel_options.impl_backend"
TASK_REWARDS = "distillation.distillation_loss.use_task_rewards"
VARIABLES = "ray_kwargs.ray_init.runtime_env.env_vars"
SECRET = re.compile(r"(_KEY|_TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)


def one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def none_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value not in values


def at_least(low: float, kind: Any = (int, float)) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool) and value >= low


def share(value: Any) -> bool:
    return at_least(0)(value) and 0 < value <= 1


SWITCH = (lambda value: value is None or isinstance(value, bool)), "it is a switch; set it to True or False"
OPTION: dict[str, tuple[Callable[[Any], bool], str]] = {  # which values will do, and why another will not
    "mode": (one_of(*MODES, None), f"it is not one of {', '.join(MODES)}"),
    "skip_zero_variance": SWITCH,
    "reproducible": SWITCH,
    "topk_cutoff": (lambda value: at_least(0)(value) and value < 1, "it must be a probability in [0, 1); 0 keeps all"),
    "poll_interval": (at_least(0), "it must be a number of seconds"),
    "record": (at_least(0, int), "it must be a whole number of at least 0"),
    "record_limit_mb": (at_least(1, int), "it must be a whole number of at least 1"),
    "record_seed": (at_least(0, int), "it must be a whole number of at least 0"),
}
NOT_MU = "log-probs are then not those of the policy that sampled (validation has its own val_kwargs); set it to"
RECOMPUTED = (
    "the rule measures from the policy that sampled; set it to True. To measure from log-probs that the trainer "
    f"recomputes, set {KEY_PREFIX}.anchor=proximal"
)
VERLS_TRAINER = (
    "verl's own trainer has no exact metrics, no skipping, no alarms, and none of the options of the preset. Leave it "
    f"out, and name it in {MODE}: the trust region then goes over that trainer"
)
LAST_CHECKPOINT = (
    "verl deletes the last checkpoint before the next one is complete, and a run that dies in between has none. Set "
    "trainer.max_actor_ckpt_to_keep to 2, which takes no more room at the peak"
)
MEGATRON = "its optimizer steps with any gradient; set on_nonfinite=raise, or train with fsdp2"
LIGER = "log Z follows from the sampled token's logit, which liger rounds as the GPU has it; set it to torch or triton"
LONGEST = "verl divides by the longest response of each micro-batch; set it to data.max_response_length"
REPRODUCIBLE, TOPK = f"{OPTIONS}.reproducible=True", f"{KEY_PREFIX}.estimator=topk"
SEPARATE = f"{MODE}=separate_async"
SUM_NORM = f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm"
ONE_RANK = f"{ROLLOUT}.engine_kwargs.vllm.distributed_executor_backend=uni"
Need = tuple[str, str, Callable[[Any], bool], str]
NEEDS: list[Need] = [  # beside which setting, of which key, what value will do, and why another will not
    ("", f"{ROLLOUT}.calculate_log_probs", bool, "mu is known by the rollout's own log-probs; set it to True"),
    ("", f"{ROLLOUT}.logprobs_mode", one_of("processed_logprobs"), f"{NOT_MU} processed_logprobs"),
    ("", f"{ROLLOUT}.engine_kwargs.vllm.logprobs_mode", one_of("processed_logprobs", None), f"{NOT_MU} null"),
    ("", f"{ROLLOUT}.top_p", one_of(1), f"{NOT_MU} 1"),
    ("", f"{ROLLOUT}.top_k", one_of(-1, 0), f"{NOT_MU} -1"),
    ("", f"{ROLLOUT}.temperature", at_least(1e-5), f"{NOT_MU} 1"),  # vLLM is greedy below
    ("", "trainer.use_v1", bool, "the legacy trainer replaces the loss in bypass mode; set it to True"),
    ("", "trainer.v1.trainer_mode", none_of(*MODES), VERLS_TRAINER),
    ("", "trainer.resume_mode", one_of("auto", "disable", "resume_path"), "verl knows no such mode; set it to auto"),
    ("", f"{ACTOR}.optim.lr", at_least(0), "it is no learning rate; set it to a number of 0 or more"),
    ("", f"{ROLLOUT}.gpu_memory_utilization", share, "it is vLLM's share of a GPU; set it to a number in (0, 1]"),
    ("", "trainer.max_actor_ckpt_to_keep", none_of(1), LAST_CHECKPOINT),
    ("", "trainer.remove_previous_ckpt_in_save", none_of(True), LAST_CHECKPOINT),
    (SEPARATE, "actor_rollout_ref.hybrid_engine", bool, "verl 0.9.1 ends in a TypeError; set it to True"),
    (REPRODUCIBLE, MODE, one_of("sync", None), f"which responses a step gets depends on time; set {MODE}=sync"),
    (REPRODUCIBLE, f"{KEY_PREFIX}.estimator", none_of("topk"), "each brings its own agent loop; choose one of them"),
    (REPRODUCIBLE, "algorithm.filter_groups.enable", none_of(True), "refilled prompts come by time; set it to False"),
    (REPRODUCIBLE, f"{ROLLOUT}.name", one_of("vllm"), "only vLLM is given a seed a response; set it to vllm"),
    (TOPK, f"{ROLLOUT}.name", one_of("vllm", None), "only vLLM's server hands out top-K log-probs; set it to vllm"),
    (TOPK, sizes.STRATEGY, one_of(*sizes.FSDP), "only verl's FSDP engines show logits; set it to fsdp or fsdp2"),
    (TOPK, "distillation.enabled", not_, "it uses the same hook on the logits; set it to False"),
    (TOPK, MANAGER_KEY, one_of(None, MANAGER), "another agent loop hands on no log-probs; set it to null"),
    (TOPK, f"{ACTOR}.fsdp_config.pad_to_length", not_, "verl's engine then shows no logits; set it to False"),
    (TOPK, f"{ROLLOUT}.disaggregation.enabled", not_, "the two servers do not hand it on; set it to False"),
    (f"{KEY_PREFIX}.on_nonfinite=skip", sizes.STRATEGY, none_of("megatron"), MEGATRON),
    ("distillation.enabled=True", TASK_REWARDS, bool, "the rule would not train; set it to True, or take no preset"),
    (SUM_NORM, f"{ACTOR}.loss_scale_factor", none_of(None), LONGEST),
    (GROUPED, f"{ROLLOUT}.n", at_least(2), "a group of one has no advantage; set it to 2 or more"),
    (ONE_RANK, f"{ROLLOUT}.tensor_model_parallel_size", one_of(1), "that executor runs one rank; set it to mp"),
]


class RunConfigError(UserError, ValueError):
    """The composed config cannot give a correct trust-region run; the message lists every problem."""

    status = 2


def is_asked_for(config: DictConfig) -> bool:
    """Whether a composed verl config has a preset, or the knobs of one, in it."""
    return _is_misplaced(config) or str(OmegaConf.select(config, f"{KEY_PREFIX}._target_")).startswith("cppo_verl.")


def _is_misplaced(config: DictConfig) -> bool:
    """Whether a preset lies where Hydra puts one that names no other place."""
    return "actor_rollout_ref" in (config.get(presets.GROUP) or {})


def mode_of(config: DictConfig) -> str:
    """Which of verl's trainers the trust region goes over, as the config says it."""
    return str(OmegaConf.select(config, MODE) or "sync")


def is_proximal(config: DictConfig) -> bool:
    """Whether a composed verl config asks for the proximal anchor."""
    return OmegaConf.select(config, f"{KEY_PREFIX}.anchor") == "proximal"


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
    if _is_misplaced(config):
        yield f"{presets.GROUP}: a preset has to begin with the line '# @package _global_'; nothing of it was set."
    contradictions = partial(start_table.contradictions, overrides=overrides)
    yield from _told(config, contradictions, _rule, _sizes, _needs, _options, _secrets)


def here_problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each thing that ``config`` asks for and this environment does not have."""
    yield from _told(config, paths.problems, attention.here_problems)


def _told(config: DictConfig, *checks: Callable[[DictConfig], Iterable[str]]) -> Iterator[str]:
    try:
        for check in checks:
            yield from check(config)
    except OmegaConfBaseException as error:  # a value that is missing, or refers to one that is
        yield f"{' '.join(str(error).split())}."


def _rule(config: DictConfig) -> Iterator[str]:
    """Whether the rule that is named is there, and the knobs are its own; a rule from outside is brought in for it."""
    knobs = OmegaConf.select(config, KEY_PREFIX) or {}
    mode, module = str(knobs.get("loss_mode")), knobs.get("rule_module")
    try:
        extensions.bring(mode, module)
        config_class(mode)
        if mode in extensions.from_outside():
            require_registered(mode)
        elif mode not in RULES and mode not in VERL_LOSSES:
            yield extensions.unknown_rule(mode, module)
        elif module:
            yield f"{extensions.KEY}={module} has no effect under loss_mode={mode}; set loss_mode to its rule."
    except KnobError as error:
        yield str(error)
    kind = knobs_of_rule(mode)
    for name in names_from_outside(knobs):
        if name not in knob_names(kind):
            yield f"{KEY_PREFIX}.{name}={knobs[name]!r} is no knob; there are {', '.join(knob_names(kind))}."
    try:
        kind(**{name: knobs[name] for name in knob_names(kind) if name in knobs})
    except KnobError as error:
        yield from str(error).splitlines()


def _sizes(config: DictConfig) -> Iterator[str]:
    values = {key: OmegaConf.select(config, key) for key in sizes.KEYS}
    values |= {key: OmegaConf.to_container(value) for key, value in values.items() if OmegaConf.is_config(value)}
    model = sizes.model_config(values[paths.MODEL])
    yield from sizes.problems(values, None if model is None else sizes.heads_of(model))


def _needs(config: DictConfig) -> Iterator[str]:
    read = partial(OmegaConf.select, config)
    for beside, key, will_do, why in [*NEEDS, *_further_needs(config)]:
        other, _, value = beside.partition("=")
        there = bool(read(other)) if value == "True" else str(read(other)) == value  # 1 is a switch that is on, too
        if (not beside or there) and not will_do(read(key)):
            yield f"{key}={read(key)}{beside and f' with {beside}'}: {why}."


def _further_needs(config: DictConfig) -> Iterator[Need]:
    """Those that depend on what the rule can do, or on two numbers."""
    mode = str(OmegaConf.select(config, f"{KEY_PREFIX}.loss_mode"))
    can, beside = capability(mode), f"{KEY_PREFIX}.loss_mode={mode}"
    if can.needs_kl:
        yield beside, f"{KEY_PREFIX}.divergence", one_of("kl"), "TRM is defined on KL(mu||pi); set it to kl"
    if not can.scales:
        yield beside, f"{KEY_PREFIX}.budget_target", one_of(None), "no threshold of the rule scales; set it to null"
    if can.own_weight:
        yield beside, f"{KEY_PREFIX}.trace", one_of(1, None), "the rule has a weight of its own; set it to 1"
    gated = " and ".join(sorted(name for name in RULES if capability(name).gates == GATES))
    why = f"it has no effect; set it to hard. {gated} have gates"
    yield beside, f"{KEY_PREFIX}.gate", none_of(*set(GATES).difference(can.gates)), why
    if not is_proximal(config):
        yield "", "algorithm.rollout_correction.bypass_mode", bool, RECOMPUTED
    if OmegaConf.select(config, f"{KEY_PREFIX}.estimator") == "topk":
        yield "actor_rollout_ref.model.use_fused_kernels=True", BACKEND, none_of("liger"), LIGER
        k, most = (OmegaConf.select(config, key) for key in (f"{KEY_PREFIX}.topk", MAX_LOGPROBS_KEY))
        if most not in (None, -1) and isinstance(k, int):
            why = f"vLLM refuses to return policy_loss.topk={k}; raise it to {k}, or lower topk"
            yield TOPK, MAX_LOGPROBS_KEY, at_least(k), why


def _options(config: DictConfig) -> Iterator[str]:
    """Of what stands under ``trainer.v1.trust_region``."""
    for name, value in (OmegaConf.select(config, OPTIONS) or {}).items():
        if name not in OPTION:
            yield f"{OPTIONS}.{name}={value} is no option; there are {', '.join(OPTION)}."
        elif not OPTION[name][0](value):
            yield f"{OPTIONS}.{name}={value!r}: {OPTION[name][1]}."


def _secrets(config: DictConfig) -> Iterator[str]:
    """verl, Hydra and Ray write the whole config into logs."""
    for name in OmegaConf.select(config, VARIABLES) or ():
        if SECRET.search(str(name)):
            yield (
                f"{VARIABLES}.{name} would be written to the run's logs. Export {name} in the shell that starts the "
                "run (or that starts Ray, on each node): workers inherit it."
            )
