"""mu's top-K log-probs from the rollout engine to the loss: the rooms of ``estimator=topk`` that import verl.

Rollout server (``server``) -> agent loop (``agent_loop``) -> TransferQueue, field ``FIELD`` -> actor update, where the
logits of those K tokens are gathered (``logits``; ``fused`` where no logits exist) and the loss gets its D_t.
Nothing here is active unless the trainer calls ``install``.
"""

from omegaconf import DictConfig, open_dict

from cppo_verl.trust_region.knobs import KEY_PREFIX

FIELD = "rollout_topk"  # in TransferQueue and in the actor's batch: ``trust_region.topk.pack`` of each response
EXTRA = "topk"  # in TokenOutput.extra_fields: {"ids": (tokens, K+1) int32, "log_probs": (tokens, K+1) float32}
MANAGER = "cppo_verl.integration.topk.agent_loop.TopKAgentLoopManager"
MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
VLLM_KEY = "actor_rollout_ref.rollout.engine_kwargs.vllm"
PADDED_KEY = "actor_rollout_ref.actor.fsdp_config.pad_to_length"
BACKEND_KEY = "actor_rollout_ref.model.fused_kernel_options.impl_backend"
VERLS_TRAINERS = ("sync", "colocate_async", "separate_async")
VLLM_MAX_LOGPROBS = 20  # vLLM's default of max_logprobs


def wanted(config: DictConfig) -> bool:
    """Whether a composed verl config asks for the top-K estimator."""
    return config.actor_rollout_ref.actor.policy_loss.get("estimator", "binary") == "topk"


def install(config: DictConfig) -> None:
    """Choose the rollout server and the agent loop that hand on top-K log-probs; called in the trainer's process.

    The replica goes into verl's registry of this one process under the name ``vllm``, so that ``rollout.name`` keeps
    meaning vLLM everywhere else.
    """
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    rollout = config.actor_rollout_ref.rollout
    with open_dict(config):
        rollout.agent.agent_loop_manager_class = MANAGER
        engine = rollout.engine_kwargs.setdefault("vllm", {})
        if engine.get("max_logprobs") is None:
            engine["max_logprobs"] = max(config.actor_rollout_ref.actor.policy_loss.topk, VLLM_MAX_LOGPROBS)
    RolloutReplicaRegistry.register("vllm", _load_replica)


def ask(extra_info: dict, config: DictConfig) -> None:
    """Say by what travels with the batch that the engine shall show its logits to the loss function."""
    extra_info["distillation_use_topk"] = True  # verl's name for that; there is no distillation
    extra_info["topk"] = config.actor_rollout_ref.actor.policy_loss.topk


def _load_replica():
    from cppo_verl.integration.topk.server import TopKReplica

    return TopKReplica


def problems(config: DictConfig):
    """One sentence for each thing that stands between this config and the top-K estimator."""
    from omegaconf import OmegaConf

    def read(key: str, default=None):
        value = OmegaConf.select(config, key)
        return default if value is None else value

    k = read(f"{KEY_PREFIX}.topk", VLLM_MAX_LOGPROBS)
    most = read(f"{VLLM_KEY}.max_logprobs")
    if isinstance(most, int) and isinstance(k, int) and most != -1 and most < k:
        yield (
            f"{VLLM_KEY}.max_logprobs={most} is below {KEY_PREFIX}.topk={k}: vLLM refuses to return that many; "
            f"raise max_logprobs to {k} or lower topk."
        )
    demands = (
        ("actor_rollout_ref.rollout.name", "vllm", ("vllm",), "only its server can be asked for top-K log-probs"),
        ("actor_rollout_ref.actor.strategy", "fsdp", ("fsdp", "fsdp2"), "other engines hand out no logits"),
        ("distillation.enabled", False, (False,), "distillation uses the same hook on the logits"),
        (MANAGER_KEY, MANAGER, (MANAGER,), "another agent loop does not hand on the log-probs"),
        (PADDED_KEY, False, (False,), "verl's engine refuses to show its logits at the first update"),
    )
    for key, default, allowed, reason in demands:
        value = read(key, default)
        if value not in allowed:
            remedy = " or ".join(map(str, allowed))
            yield f"{key}={value} with {KEY_PREFIX}.estimator=topk: {reason}; set it to {remedy}."
    if read("actor_rollout_ref.model.use_fused_kernels", False) and read(BACKEND_KEY) == "liger":
        yield (
            f"{BACKEND_KEY}=liger with {KEY_PREFIX}.estimator=topk: the normaliser follows from the sampled token's "
            "logit, and how liger rounds that depends on the GPU; set it to torch or triton."
        )
    mode = read("trainer.v1.trainer_mode", "trust_region")
    if mode in VERLS_TRAINERS:
        yield (
            f"trainer.v1.trainer_mode={mode} with {KEY_PREFIX}.estimator=topk: verl's own trainer asks for no top-K "
            "log-probs; set it to trust_region."
        )
    if read("actor_rollout_ref.rollout.disaggregation.enabled", False):
        yield f"{KEY_PREFIX}.estimator=topk does not support actor_rollout_ref.rollout.disaggregation.enabled=True."
    cutoff = read("trainer.v1.trust_region.topk_cutoff", 0.0)
    if not (isinstance(cutoff, int | float) and 0 <= cutoff < 1):
        yield f"trainer.v1.trust_region.topk_cutoff={cutoff!r} must be a probability in [0, 1); 0 keeps all entries."
