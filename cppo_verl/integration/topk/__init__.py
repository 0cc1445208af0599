"""mu's top-K log-probs from the rollout engine to the loss: the rooms of ``estimator=topk`` that import verl.

Rollout server (``server``) -> agent loop (``agent_loop``) -> TransferQueue, field ``FIELD`` -> actor update, where the
logits of those K tokens are gathered (``logits``; ``fused`` where no logits exist) and the loss gets its D_t.
Nothing here is active unless the trainer calls ``install``.
"""

from omegaconf import DictConfig, OmegaConf, open_dict

FIELD = "rollout_topk"  # in TransferQueue and in the actor's batch: ``trust_region.topk.pack`` of each response
EXTRA = "topk"  # in TokenOutput.extra_fields: {"ids": (tokens, K+1) int32, "log_probs": (tokens, K+1) float32}
MANAGER = "cppo_verl.integration.topk.agent_loop.TopKAgentLoopManager"
MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
MAX_LOGPROBS_KEY = "actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs"
VLLM_MAX_LOGPROBS = 20  # vLLM's default of it


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
