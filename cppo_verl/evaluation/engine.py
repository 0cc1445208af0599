"""Prompts to responses: verl's tokenisation, vLLM's engine."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cppo_verl.atomic import writable
from cppo_verl.evaluation import EvaluationError
from cppo_verl.evaluation.problems import Problem
from cppo_verl.evaluation.settings import Sampling
from cppo_verl.evaluation.store import Response
from cppo_verl.integration import cpu


@dataclass(frozen=True)
class Prompts:
    """Token ids a problem row, and the most tokens that prompt and response may have together."""

    ids: dict[int, list[int]]
    max_model_len: int
    tokenizer: Any


def tokenise(problems: Sequence[Problem], folder: Path, sampling: Sampling, trust_remote_code: bool) -> Prompts:
    """Token ids of each prompt, as verl's agent loop builds them for a single turn; an EvaluationError where one fills
    the model's context."""
    from transformers import AutoConfig
    from verl.utils.tokenizer import hf_tokenizer
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    tokenizer = hf_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    builder = create_continuous_token_builder(
        tokenizer, hf_model_type=config.model_type, chat_template_kwargs=sampling.chat_template_kwargs
    )
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = min(length for length in (own, sampling.max_model_len, 1 << 30) if length)
    ids = {}
    for problem in problems:
        ids[problem.row] = list(builder.build_initial_tokens(problem.messages))
        if len(ids[problem.row]) >= limit:
            raise EvaluationError(
                f"{problem.place}: the prompt has {len(ids[problem.row])} tokens, the model takes {limit} with the "
                "response: drop the problem, or raise --max-model-len if the model allows it"
            )
    return Prompts(ids, limit, tokenizer)


def start(folder: Path, prompts: Prompts, sampling: Sampling, options: Mapping[str, Any]) -> Any:
    """vLLM's engine with the model of ``folder``, for prompts and responses as long as these may get; ``options`` are
    further arguments of ``vllm.LLM``, on which no response depends, up to rounding."""
    if options.get("tensor_parallel_size", 1) == 1:
        # No engine process that a killed evaluation would leave behind.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    longest = max(map(len, prompts.ids.values()))
    longest = min(prompts.max_model_len, longest + sampling.max_response_length)
    arguments: dict[str, Any] = {"model": str(folder), "dtype": sampling.dtype, "seed": sampling.seed}
    arguments |= {"max_model_len": longest, "gpu_memory_utilization": 0.9}
    if cpu.enabled():
        arguments |= {"enforce_eager": True, "gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 28}
        # vLLM rewinds a seeded request's generator after a partial prefill, which the CPU's generator cannot do.
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(2048, longest)}
    return LLM(**{**arguments, **options}).llm_engine


def generate(engine: Any, prompts: Prompts, sampling: Sampling) -> Iterator[list[Response]]:
    """All ``n`` responses of one problem after the other, in the order in which they get ready.

    A problem's seed follows from the seed and its row alone, so an interrupted evaluation draws what an uninterrupted
    one would have drawn.
    """
    for row, ids in prompts.ids.items():
        room = min(sampling.max_response_length, prompts.max_model_len - len(ids))
        engine.add_request(str(row), {"prompt_token_ids": ids}, parameters(sampling, row, room))
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                row = int(output.request_id)
                responses = []
                for one in sorted(output.outputs, key=lambda sample: sample.index):
                    text = writable(prompts.tokenizer.decode(list(one.token_ids), skip_special_tokens=True))
                    responses.append(Response(row, one.index, text, len(one.token_ids), str(one.finish_reason)))
                yield responses


def parameters(sampling: Sampling, row: int, room: int) -> Any:
    """vLLM's parameters of a problem, whose responses have at most ``room`` tokens; an EvaluationError for a value that
    it refuses."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind

    chosen: dict[str, Any] = {name: getattr(sampling, name) for name in ("n", "temperature", "top_p", "top_k")}
    chosen |= {"seed": _seed(sampling.seed, row), "max_tokens": room, "detokenize": False}
    try:
        return SamplingParams(**chosen, output_kind=RequestOutputKind.FINAL_ONLY)
    except VLLMValidationError as error:
        raise EvaluationError(str(error)) from None


def _seed(seed: int, row: int) -> int:
    """31 bits; vLLM adds the number of the sample."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:4], "big") >> 1
