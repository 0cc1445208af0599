"""verl's TransferQueue agent loop, with mu's top-K put beside each training response.

The client keeps what the server sends with every generation call of a session (several turns, or the parts of an
aborted and resumed one), with the position it starts at; at the end the parts are laid against each response.
"""

import functools
import logging
import types
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from torch import Tensor
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.workers.rollout.llm_server import LLMServerClient

from cppo_verl.integration.topk import EXTRA, FIELD
from cppo_verl.trust_region.knobs import KEY_PREFIX
from cppo_verl.trust_region.topk import pack

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """One generation call. ``ids`` and ``log_probs`` are (tokens, K + 1), the sampled token's in the first column."""

    start: int  # of its first token in the whole sequence
    token_ids: Sequence[int]
    ids: np.ndarray
    log_probs: np.ndarray


_parts: ContextVar[list[Part] | None] = ContextVar("topk_parts", default=None)


class CollectingClient(LLMServerClient):
    """verl's client; inside a training session the top-K of each call goes to that session's parts."""

    async def generate(self, request_id, *, prompt_ids: list[int], **kwargs):
        output = await super().generate(request_id, prompt_ids=prompt_ids, **kwargs)
        arrays = output.extra_fields.pop(EXTRA, None)
        parts = _parts.get()
        if arrays is not None and parts is not None:
            parts.append(Part(len(prompt_ids), list(output.token_ids), arrays["ids"], arrays["log_probs"]))
        return output


@functools.cache
def collecting(client_class: type[LLMServerClient]) -> type[LLMServerClient]:
    """``client_class`` with ``CollectingClient`` just above verl's own client, below what resumes aborted calls."""
    if client_class is LLMServerClient:
        return CollectingClient
    return types.new_class(f"Collecting{client_class.__name__}", (client_class, CollectingClient))


def lay_out(parts: Sequence[Part], output: AgentLoopOutput) -> tuple[Tensor, Tensor]:
    """Ids and log-probs of a response, both (tokens, columns); tokens of no part (tool output) have no entries.

    A part belongs to the response as far as both its tokens and their log-probs are the response's own: outputs of one
    session may begin alike after prompts of equal length. Parts may reach beyond a truncated response.
    """
    response = np.asarray(output.response_ids, dtype=np.int64)
    sampled = np.asarray(output.response_logprobs, dtype=np.float32)
    columns = parts[0].ids.shape[1] if parts else 1  # a session asks for one K
    ids = np.zeros((len(response), columns), dtype=np.int32)
    log_probs = np.full((len(response), columns), -np.inf, dtype=np.float32)
    for part in parts:
        start = part.start - len(output.prompt_ids)
        length = min(len(part.token_ids), len(response) - start)
        if start < 0 or length <= 0:
            continue
        here = slice(start, start + length)
        same = (response[here] == part.token_ids[:length]) & (sampled[here] == part.log_probs[:length, 0])
        length = length if same.all() else int(same.argmin())
        here = slice(start, start + length)
        ids[here], log_probs[here] = part.ids[:length], part.log_probs[:length]
    return torch.from_numpy(ids), torch.from_numpy(log_probs)


def carry(output: AgentLoopOutput, packed: Tensor) -> None:
    """Have this output's ``as_dict``, which goes to TransferQueue and not to reward workers, also hold ``packed``."""
    output.__dict__["as_dict"] = lambda: {**type(output).as_dict(output), FIELD: packed}


class TopKAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):  # type: ignore[name-defined]
    """verl's worker; training sessions ask for K log-probs and keep them, validation is as before."""

    def __init__(self, config, llm_client, *args, **kwargs):
        llm_client.__class__ = collecting(type(llm_client))  # type: ignore[arg-type]  # Ray made this copy for this worker
        super().__init__(config, llm_client, *args, **kwargs)
        self.k = OmegaConf.select(config, f"{KEY_PREFIX}.topk")
        self.cutoff = OmegaConf.select(config, "trainer.v1.trust_region.topk_cutoff") or 0.0
        self.warned = False

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs):
        if trajectory["validate"]:
            return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        token = _parts.set([])
        try:
            return await super()._run_agent_loop({**sampling_params, "logprobs": self.k}, trajectory, **kwargs)
        finally:
            _parts.reset(token)

    async def _agent_loop_postprocess(self, output, validate, **kwargs):
        if not validate:
            for one in output if isinstance(output, list) else [output]:
                ids, log_probs = lay_out(_parts.get() or [], one)
                bare = torch.tensor(one.response_mask).bool() & (log_probs == -torch.inf).all(-1)
                if bare.any() and not self.warned:  # an agent loop wrote them, or changed their log-probs
                    self.warned = True
                    said = "%d of %d trained tokens of a response have no top-K, so they get the binary divergence"
                    logger.warning(said, int(bare.sum()), sum(one.response_mask))
                sampled = torch.tensor(one.response_logprobs, dtype=torch.float32)
                response = torch.tensor(one.response_ids, dtype=torch.long)
                carry(one, pack(ids, log_probs, response, sampled, self.cutoff))
        return await super()._agent_loop_postprocess(output, validate, **kwargs)


class TopKAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with ``TopKAgentLoopWorker``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(TopKAgentLoopWorker)
