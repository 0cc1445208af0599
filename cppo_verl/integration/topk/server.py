"""verl's vLLM server, asking the engine for K log-probs a token where a request wants them.

A request wants them when its sampling parameter ``logprobs`` is a whole number; verl's own requests carry a bool.
"""

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import ray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput

from cppo_verl.integration.topk import EXTRA

# Of the request at hand: how many log-probs a token, and where they go once it is answered
Asked = tuple[int, dict[str, np.ndarray]]
_asked: ContextVar[Asked | None] = ContextVar("top_k_of_this_request", default=None)


class TopKHttpServer(vLLMHttpServer):
    """verl's server; a request that wants K log-probs gets them in ``extra_fields``, any other is verl's."""

    async def run_server(self, args) -> None:
        await super().run_server(args)
        self.engine: Any = RecordingEngine(self.engine)

    async def generate(  # type: ignore[override]  # the rest is handed on by name
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **kwargs
    ) -> TokenOutput:
        k = sampling_params.get("logprobs")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            return await super().generate(prompt_ids, sampling_params, request_id, **kwargs)
        found: dict[str, np.ndarray] = {}
        token = _asked.set((k, found))
        try:
            output = await super().generate(prompt_ids, sampling_params, request_id, **kwargs)
        finally:
            _asked.reset(token)
        if found:
            output.extra_fields[EXTRA] = found
        return output


class TopKReplica(vLLMReplica):
    """verl's vLLM replica with ``TopKHttpServer``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(TopKHttpServer)


class RecordingEngine:
    """vLLM's engine client; what it answers to a request in ``_asked`` is kept there as arrays."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def generate(self, *, sampling_params: SamplingParams, **kwargs) -> AsyncIterator[RequestOutput]:
        """As vLLM's; where K log-probs are asked for, the text is not decoded (verl reads token ids only)."""
        asked = _asked.get()
        if asked is None:
            return self._engine.generate(sampling_params=sampling_params, **kwargs)
        sampling_params.logprobs = asked[0]
        sampling_params.flat_logprobs = True
        if not sampling_params.stop:
            sampling_params.detokenize = False
        return _recorded(self._engine.generate(sampling_params=sampling_params, **kwargs), *asked)


async def _recorded(
    outputs: AsyncIterator[RequestOutput], k: int, found: dict[str, np.ndarray]
) -> AsyncIterator[RequestOutput]:
    last = None
    async for last in outputs:
        yield last
    if last is not None and last.outputs:
        completion = last.outputs[0]
        found.update(top_k_arrays(completion.logprobs, list(completion.token_ids), k))
        # verl reads only the sampled token's: hand it a light view of that
        sampled = zip(completion.token_ids, found["log_probs"][:, 0].tolist(), strict=True)
        completion.logprobs = [{token: Logprob(value)} for token, value in sampled]


def top_k_arrays(logprobs: Any, token_ids: list[int], k: int) -> dict[str, np.ndarray]:
    """``ids`` (tokens, k + 1) int32 and ``log_probs`` (tokens, k + 1) float32: the sampled token first, then the top-K.

    Args:
        logprobs: vLLM's ``FlatLogprobs``: k + 1 entries a token in this order, the sampled token there once more where
            it is among the top-K. An abort may leave entries of a further token behind.

    Raises:
        ValueError: when it has another form.
    """
    shape, entries = (len(token_ids), k + 1), len(token_ids) * (k + 1)
    ids, values = logprobs.token_ids[:entries], logprobs.logprobs[:entries]
    if len(ids) != entries or ids[:: k + 1] != token_ids:
        raise ValueError(
            f"vLLM's log-probs ({len(ids)} entries for {len(token_ids)} tokens) do not list each sampled token first, "
            f"and {k} more beside it"
        )
    return {"ids": np.array(ids, np.int32).reshape(shape), "log_probs": np.array(values, np.float32).reshape(shape)}
