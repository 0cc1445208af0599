"""The paper's scripts, scaled down for the CPU.

What a script says of parallelism, offload, packing, checkpointing and attention stays as it says it; sizes shrink, the
token budget in proportion to the longest sequence. flash-attn is its stand-in (tests/stand_in).
"""

import subprocess

from cppo_verl import paper
from recipe.settings import parse
from recipe.shapes import PAPER_NAMES
from tests import ROOT, stand_in

from .runs import Work, ended_well

FSDP = "actor_rollout_ref.actor.fsdp_config."
PROMPT, RESPONSE = 48, 64  # tokens
ON_CPU = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(model: str, *arguments: str) -> list[str]:
    return ["bash", str(ROOT / f"run_scripts/{model}.sh"), *arguments]


def environment(**values: object) -> dict[str, str]:
    """Of a script that joins no Ray cluster that happens to be here."""
    return {**stand_in.environment(), "RAY_ADDRESS": "local", **ON_CPU, **{k: str(v) for k, v in values.items()}}


def script(model: str, *arguments: str, **values: object) -> subprocess.CompletedProcess:
    options = {"env": environment(**values), "capture_output": True, "text": True, "timeout": 1500}
    return subprocess.run(command(model, *arguments), **options)


def overrides(model: str, method: str, **values: str) -> dict:
    """What the script gives verl anywhere."""
    done = script(model, "overrides", VERL_PLATFORM="", METHOD=method, **values)
    ended_well(done)
    return parse(done.stdout.splitlines())


def smaller(work: Work, model: str, own: dict) -> dict[str, object]:
    """The sizes of a run with as many updates a batch as in Table 3, on as many ranks as share a sequence."""
    longest = own["data.max_prompt_length"] + own["data.max_response_length"]
    return {
        "PROMPT_TOKENS": PROMPT,
        "RESPONSE_TOKENS": RESPONSE,
        "N": 4,
        "MINIBATCH": 2,
        "MODEL_PATH": work.model,  # dense for all: vLLM's CPU engine packs experts, which verl cannot refill
        "TRAIN_FILE": work.data / "train.parquet",
        "VAL_FILES": work.data / "val.parquet",
        "REWARD_FILE": ROOT / "data_prep/arithmetic_reward.py",
        "PROMPTS": 2 * paper.settings()[PAPER_NAMES[model]].updates,
        "TOKENS_PER_GPU": own["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] * (PROMPT + RESPONSE) // longest,
        "NGPUS_PER_NODE": own[FSDP + "ulysses_sequence_parallel_size"],
        "GPU_SHARE": 0.05,  # of the machine's memory there, which trainer and rollout share
    }
