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
MAX_LOGPROBS_KEY = "actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs"
VLLM_MAX_LOGPROBS = 20  # vLLM's default of it
BACKEND_KEY = "actor_rollout_ref.model.fused_kernel_options.impl_backend"
VERLS_TRAINERS = ("sync", "colocate_async", "separate_async")


def wanted(config: DictConfig) -> bool:
    """Whether a composed verl config asks for the top-K estimator."""
    return config.actor_rollout_ref.actor.policy_loss.get("estimator", "binary") == "topk"


def install(config: DictConfig) -> None:
    """Choose the rollout server and the agent loop that hand on top-K log-probs; called in the trainer's process.

    The replica goes into verl's registry of this one process under the name ``vllm``, so that ``rollout.name`` keeps
    meaning vLLM everywhere else.
    """
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    with open_dict(config):
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = MANAGER
    if OmegaConf.select(config, MAX_LOGPROBS_KEY) is None:
        most = max(config.actor_rollout_ref.actor.policy_loss.topk, VLLM_MAX_LOGPROBS)
        OmegaConf.update(config, MAX_LOGPROBS_KEY, most, force_add=True)
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

    k, most = read(f"{KEY_PREFIX}.topk", VLLM_MAX_LOGPROBS), read(MAX_LOGPROBS_KEY, -1)
    if isinstance(most, int) and isinstance(k, int) and -1 != most < k:
        yield (
            f"{MAX_LOGPROBS_KEY}={most} is below {KEY_PREFIX}.topk={k}: vLLM refuses to return that many; raise "
            f"max_logprobs to {k} or lower topk."
        )
    fused = read("actor_rollout_ref.model.use_fused_kernels", False)
    liger = "the normaliser follows from the sampled token's logit, and how liger rounds that depends on the GPU"
    for key, is_wrong, reason, remedy in (
        ("distillation.enabled", bool, "it uses the same hook on the logits", "False"),
        (MANAGER_KEY, lambda name: name not in (None, MANAGER), "another agent loop hands on no log-probs", "null"),
        ("actor_rollout_ref.actor.fsdp_config.pad_to_length", bool, "verl's engine then shows no logits", "False"),
        (BACKEND_KEY, lambda name: fused and name == "liger", liger, "torch or triton"),
        ("trainer.v1.trainer_mode", VERLS_TRAINERS.__contains__, "verl's own trainer asks for none", "trust_region"),
        ("actor_rollout_ref.rollout.disaggregation.enabled", bool, "the two servers do not hand it on", "False"),
    ):
        if is_wrong(read(key)):
            yield f"{key}={read(key)} with {KEY_PREFIX}.estimator=topk: {reason}; set it to {remedy}."
    cutoff = read("trainer.v1.trust_region.topk_cutoff", 0.0)
    if not (isinstance(cutoff, int | float) and 0 <= cutoff < 1):
        yield f"trainer.v1.trust_region.topk_cutoff={cutoff!r} must be a probability in [0, 1); 0 keeps all entries."
