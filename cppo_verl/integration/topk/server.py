"""verl's vLLM server, asking the engine for K log-probs a token where a request wants them.

A request wants them when its sampling parameter ``logprobs`` is a whole number; verl's own requests carry a bool.
"""

from typing import Any

import ray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from cppo_verl.integration.topk import EXTRA
from cppo_verl.integration.topk.recording import RecordingEngine


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
        self.engine.pending[request_id] = k
        try:
            output = await super().generate(prompt_ids, sampling_params, request_id, **kwargs)
        finally:
            self.engine.pending.pop(request_id, None)
            recorded = self.engine.recorded.pop(request_id, None)
        if recorded is not None:
            output.extra_fields[EXTRA] = recorded
        return output


class TopKReplica(vLLMReplica):
    """verl's vLLM replica with ``TopKHttpServer``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(TopKHttpServer)
