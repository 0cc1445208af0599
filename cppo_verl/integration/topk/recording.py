"""What is asked of vLLM and how its answer is read: K log-probs a token of the requests that want them, as arrays."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput


class RecordingEngine:
    """vLLM's engine client, with the log-probs of the requests in ``pending`` kept as arrays in ``recorded``."""

    def __init__(self, engine):
        self._engine = engine
        self.pending: dict[str, int] = {}
        self.recorded: dict[str, dict[str, np.ndarray]] = {}

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def generate(self, *, sampling_params: SamplingParams, request_id: str, **kwargs) -> AsyncIterator[RequestOutput]:
        """As vLLM's; a pending request gets K log-probs, and its text is not decoded (verl reads token ids only)."""
        k = self.pending.pop(request_id, None)
        if k is None:
            return self._engine.generate(sampling_params=sampling_params, request_id=request_id, **kwargs)
        sampling_params.logprobs = k
        sampling_params.flat_logprobs = True
        if not sampling_params.stop:
            sampling_params.detokenize = False
        return self._record(self._engine.generate(sampling_params=sampling_params, request_id=request_id, **kwargs), k)

    async def _record(self, outputs: AsyncIterator[RequestOutput], k: int) -> AsyncIterator[RequestOutput]:
        last = None
        async for last in outputs:
            yield last
        if last is not None and last.outputs:
            completion = last.outputs[0]
            arrays = top_k_arrays(completion.logprobs, list(completion.token_ids), k)
            self.recorded[last.request_id] = arrays
            # verl reads only the sampled token's: hand it a light view of that
            sampled = zip(completion.token_ids, arrays["log_probs"][:, 0].tolist(), strict=True)
            completion.logprobs = [{token: Logprob(value)} for token, value in sampled]


def top_k_arrays(logprobs: Any, token_ids: list[int], k: int) -> dict[str, np.ndarray]:
    """K + 1 columns a token: the sampled one first, then the top-K; what is missing has log-prob minus infinity.

    Args:
        logprobs: vLLM's ``FlatLogprobs`` or list of dicts, of at least ``len(token_ids)`` positions with K or K + 1
            entries each (the sampled token may be among the top K, and is listed first in the flat form).

    Raises:
        ValueError: when a position does not list its sampled token.
    """
    tokens = len(token_ids)
    ids = np.zeros((tokens, k + 1), dtype=np.int32)
    values = np.full((tokens, k + 1), -np.inf, dtype=np.float32)
    if hasattr(logprobs, "start_indices") and logprobs.end_indices[:tokens] == list(
        range(k + 1, tokens * (k + 1) + 1, k + 1)
    ):
        ids[:] = np.array(logprobs.token_ids[: tokens * (k + 1)]).reshape(tokens, k + 1)
        values[:] = np.array(logprobs.logprobs[: tokens * (k + 1)]).reshape(tokens, k + 1)
    else:
        for row, token in enumerate(token_ids):
            entries = {key: entry.logprob for key, entry in logprobs[row].items()}
            entries = {token: entries.pop(token, None), **entries}
            if entries[token] is None:
                raise ValueError(f"vLLM's log-probs at position {row} do not list the sampled token {token}")
            ids[row, : len(entries)] = list(entries)
            values[row, : len(entries)] = list(entries.values())
    if not np.array_equal(ids[:, 0], token_ids):
        raise ValueError("vLLM's log-probs do not list the sampled token first")
    return {"ids": ids, "log_probs": values}
