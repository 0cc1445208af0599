"""mu's top-K log-probs from the rollout engine to the loss: the rooms of ``estimator=topk`` that import verl.

Rollout server (``server``) -> agent loop (``agent_loop``) -> TransferQueue, field ``FIELD`` -> actor update, where the
logits of those K tokens are gathered (``logits``; ``fused`` where no logits exist) and the loss gets its D_t.
Nothing here is active unless the trainer calls ``install``.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cppo_verl.trust_region.knobs import KEY_PREFIX

FIELD = "rollout_topk"  # in TransferQueue and in the actor's batch: ``trust_region.topk.pack`` of each response
EXTRA = "topk"  # in TokenOutput.extra_fields: {"ids": (tokens, K+1) int32, "log_probs": (tokens, K+1) float32}
MANAGER = "cppo_verl.integration.topk.agent_loop.TopKAgentLoopManager"
MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
VLLM_KEY = "actor_rollout_ref.rollout.engine_kwargs.vllm"
PADDED_KEY = "actor_rollout_ref.actor.fsdp_config.pad_to_length"
BACKEND_KEY = "actor_rollout_ref.model.fused_kernel_options.impl_backend"
MODE_KEY = "trainer.v1.trainer_mode"
DISAGGREGATED_KEY = "actor_rollout_ref.rollout.disaggregation.enabled"
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


def problems(config: DictConfig) -> Iterator[str]:
    """One sentence for each thing but engine and rollout that stands between this config and the top-K estimator."""

    def read(key: str, default: Any = None) -> Any:
        value = OmegaConf.select(config, key)
        return default if value is None else value

    k, most = read(f"{KEY_PREFIX}.topk", VLLM_MAX_LOGPROBS), read(f"{VLLM_KEY}.max_logprobs", -1)
    if isinstance(most, int) and isinstance(k, int) and most != -1 and most < k:
        yield (
            f"{VLLM_KEY}.max_logprobs={most} is below {KEY_PREFIX}.topk={k}: vLLM refuses to return that many; "
            f"raise max_logprobs to {k} or lower topk."
        )
    for key, refused, reason, remedy in (
        ("distillation.enabled", read("distillation.enabled", False), "it uses the same hook on the logits", "False"),
        (MANAGER_KEY, read(MANAGER_KEY, MANAGER) != MANAGER, "another agent loop hands on no log-probs", "null"),
        (PADDED_KEY, read(PADDED_KEY, False), "verl's engine then shows no logits", "False"),
        (
            BACKEND_KEY,
            read("actor_rollout_ref.model.use_fused_kernels", False) and read(BACKEND_KEY) == "liger",
            "the normaliser follows from the sampled token's logit, and how liger rounds that depends on the GPU",
            "torch or triton",
        ),
        (MODE_KEY, read(MODE_KEY) in VERLS_TRAINERS, "verl's own trainer asks for none", "trust_region"),
        (DISAGGREGATED_KEY, read(DISAGGREGATED_KEY, False), "the two servers do not hand it on", "False"),
    ):
        if refused:
            yield f"{key}={read(key)} with {KEY_PREFIX}.estimator=topk: {reason}; set it to {remedy}."
    cutoff = read("trainer.v1.trust_region.topk_cutoff", 0.0)
    if not (isinstance(cutoff, int | float) and 0 <= cutoff < 1):
        yield f"trainer.v1.trust_region.topk_cutoff={cutoff!r} must be a probability in [0, 1); 0 keeps all entries."
