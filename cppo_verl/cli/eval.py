"""Avg@N of a checkpoint or a model, with standard errors.

Sample N answers a problem with vLLM, score them as verl's validation does, and write summary.json, problems.csv,
problems.parquet and samples.parquet. Stopped, the same command goes on.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Where none is given, a run's own config.yaml decides, then the default.
    add = parser.add_argument
    add("model", metavar="CHECKPOINT", help="run, global_step_N, model folder or hub id")
    add("--data", nargs="+", type=Path, default=[], help="parquet or jsonl (default: the run's)")
    add("--out", type=Path, help="where to write (default: RUN/eval/global_step_N or eval/MODEL)")
    add("--fresh", action="store_true", help="throw away the responses that --out holds")
    add("--part-size", type=int, default=8, help="problems saved at a time (%(default)s)")
    add = parser.add_argument_group("sampling").add_argument
    add("--n", type=int, help="samples a problem (16)")
    add("--temperature", type=float, help="0 is greedy (0.7)")
    add("--top-p", type=float, help="(0.95)")
    add("--top-k", type=int, help="-1 is all tokens (-1)")
    add("--seed", type=int, help="(0)")
    add("--max-response-length", type=int, help="tokens (the run's, else 8192)")
    add("--max-model-len", type=int, help="tokens of prompt and response (the run's, else the model's)")
    add("--chat-template-kwargs", type=json.loads, help='JSON, such as {"enable_thinking": false}')
    add = parser.add_argument_group("scoring").add_argument
    add("--reward-file", help="verl's reward.custom_reward_function.path (the run's, else verl's own)")
    add("--reward-name", default="compute_score", help="the function in it (%(default)s)")
    add("--reward-kwargs", type=json.loads, default={}, help="JSON, further arguments of the function")
    add = parser.add_argument_group("vLLM").add_argument
    dtypes = ("bfloat16", "float16", "float32")
    add("--dtype", choices=dtypes, help="the run's rollout dtype, else bfloat16; float32 without a GPU")
    add("--tensor-parallel-size", type=int, help="GPUs a model (1)")
    add("--gpu-memory-utilization", type=float, help="share of the GPU (0.9)")
    add("--enforce-eager", action="store_true", default=None, help="no CUDA graphs")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    words = "any vllm.LLM argument"
    add("--vllm", type=_pair, action="append", default=[], dest="extra", metavar="KEY=JSON", help=words)


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 when the tables are written. EvaluationError: they cannot be."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vLLM is imported; what stops it is raised
    from cppo_verl.evaluation.evaluate import evaluate
    from cppo_verl.evaluation.settings import Reward, Sampling

    sampling = {each.name: getattr(args, each.name) for each in dataclasses.fields(Sampling)}
    named = {name: getattr(args, name) for name in ("tensor_parallel_size", "gpu_memory_utilization", "enforce_eager")}
    evaluate(
        args.model,
        args.data,
        args.out,
        sampling,
        reward=Reward(args.reward_file, args.reward_name, args.reward_kwargs) if args.reward_file else None,
        vllm={name: value for name, value in named.items() if value is not None} | dict(args.extra),
        trust_remote_code=args.trust_remote_code,
        part_size=args.part_size,
        fresh=args.fresh,
        say=lambda line: print(line, flush=True),
    )
    return 0


def _pair(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
