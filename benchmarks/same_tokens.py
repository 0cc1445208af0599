"""Whether a model folder gives the same text in transformers and in vLLM: greedy, float32, token by token.

`python -m benchmarks.same_tokens --model DIR --data DIR/val.parquet` continues prompts in both and compares tokens and
log-probs. A folder whose weights, tokenizer or chat template one of the two reads differently shows here, before it
spends hours as a wrong policy. Exit status 1 where a token differs.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import torch


def prompts_of(data: Path, tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of the first prompts of a parquet in verl's columns, as chats."""
    rows = pandas.read_parquet(data)["prompt"][:count]
    texts = [tokenizer.apply_chat_template(list(row), add_generation_prompt=True, tokenize=False) for row in rows]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@torch.no_grad()
def by_transformers(folder: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[tuple[int, float]]]:
    """Greedy token ids with their log-probs, one list a prompt; without padding, one prompt at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for prompt in prompts:
        done = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=tokens,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=model.config.pad_token_id,
        )
        ids = done.sequences[0, len(prompt) :].tolist()
        logs = [logits[0].log_softmax(-1)[token].item() for logits, token in zip(done.logits, ids, strict=True)]
        found.append(list(zip(ids, logs, strict=True)))
    return found


def by_vllm(folder: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[tuple[int, float]]]:
    """The same from vLLM's engine, on the CPU platform with the settings of a run."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    longest = max(map(len, prompts)) + tokens
    engine = LLM(str(folder), dtype="float32", max_model_len=longest, enforce_eager=True, kv_cache_memory_bytes=1 << 28)
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, logprobs=0)
    outputs = engine.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, use_tqdm=False)
    best = [output.outputs[0] for output in outputs]
    return [
        [(token, entry[token].logprob) for token, entry in zip(one.token_ids, one.logprobs, strict=True)]
        for one in best
    ]


def compare(one: Sequence[Sequence[tuple[int, float]]], other: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """How many prompts and tokens are the same, and the largest difference of log-probs among those tokens."""
    pairs = list(zip(one, other, strict=True))
    same = [[a[0] for a in left] == [b[0] for b in right] for left, right in pairs]
    gaps = [abs(a[1] - b[1]) for left, right in pairs for a, b in zip(left, right, strict=False) if a[0] == b[0]]
    return {
        "prompts": len(pairs),
        "same_prompts": sum(same),
        "tokens": sum(len(left) for left in one),
        "largest_gap": max(gaps, default=float("nan")),
    }


def main() -> None:
    """Command line."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_tokens", description=about)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="a parquet file with verl's column prompt")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="of each continuation (%(default)s)")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    prompts = prompts_of(options.data, AutoTokenizer.from_pretrained(options.model), options.prompts)
    found = compare(*(how(options.model, prompts, options.tokens) for how in (by_transformers, by_vllm)))
    print(json.dumps(found))
    sys.exit(0 if found["same_prompts"] == found["prompts"] else 1)


if __name__ == "__main__":
    main()
