"""verl's agent loop with a seed of its own for every response, for ``trainer.v1.trust_region.reproducible``."""

from typing import Any

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from cppo_verl.integration.reproducible import seed_of


class SeededAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):  # type: ignore[name-defined]
    """verl's worker; every request has its own seed."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)  # Ray copies an inherited constructor, whose super() then names another class

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs):
        prompt, sample = list(kwargs["raw_prompt"]), kwargs["session_id"]
        seed = seed_of(self.config.actor_rollout_ref.rollout.seed, int(trajectory["step"]), prompt, sample)
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with ``SeededAgentLoopWorker``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SeededAgentLoopWorker)
