"""verl's agent loop with a seed of its own for every response, for ``trainer.v1.trust_region.reproducible``."""

from collections import Counter
from typing import Any

import ray
import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from cppo_verl.integration.reproducible import seed_of

PLACE = "place_among_equal_prompts"


class SeededAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):  # type: ignore[name-defined]
    """verl's worker; every request has its own seed, under vLLM's name for it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)  # Ray copies an inherited constructor, whose super() then names another class

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs):
        prompt, place, sample = list(kwargs["raw_prompt"]), int(kwargs.pop(PLACE)), kwargs["session_id"]
        seed = seed_of(self.config.actor_rollout_ref.rollout.seed, int(trajectory["step"]), prompt, place, sample)
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with ``SeededAgentLoopWorker``."""

    _step: tuple[int, bool] | None = None
    _asked: Counter[str]  # how often each prompt was asked in the step, over however many batches

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SeededAgentLoopWorker)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """As verl's, each prompt with its place among those of the step that are equal to it."""
        step = (int(prompts["global_steps"]), bool(prompts["validate"]) if "validate" in prompts else False)
        if step != self._step:
            self._step, self._asked = step, Counter()
        places = []
        for prompt in prompts["raw_prompt"]:
            text = repr(list(prompt))
            places.append(self._asked[text])
            self._asked[text] += 1
        prompts[PLACE] = torch.tensor(places)
        super().generate_sequences(prompts)
