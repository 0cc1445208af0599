"""The quickstart as the tests start it, and what a run left in its log."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas

from tests import ROOT

P = "actor/trust_region/"
QUICKSTART = str(ROOT / "run_scripts/quickstart.sh")
SHARED_SEQUENCES = (  # two ranks, each with a half of every packed micro-batch
    "++actor_rollout_ref.model.override_config.attn_implementation=flash_attention_2",
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
    "actor_rollout_ref.model.enable_gradient_checkpointing=true",
)
SAMPLED = {"n": 8, "temperature": 0.7, "top_p": 0.95}
STATES_ON_THE_HOST = (
    "actor_rollout_ref.actor.fsdp_config.param_offload=true",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true",
)


@dataclass(frozen=True)
class Work:
    """A quickstart's working folder with data and model in it."""

    folder: Path
    data: Path
    model: Path


def environment(work: Work, **values: str) -> dict[str, str]:
    """Of a quickstart that joins no Ray cluster that happens to be here, or was."""
    return {**os.environ, "WORK": str(work.folder), "RAY_ADDRESS": "local", **values}


def quickstart(work: Work, *overrides: str, **values: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [QUICKSTART, *overrides], env=environment(work, **values), capture_output=True, text=True, timeout=1500
    )


def ended_well(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def records(run: Path) -> list[dict]:
    """Every logged line of a run, in the order of its starts."""
    lines = [line for file in sorted((run / "logs").glob("metrics-*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def validation(work: Work, run: Path, step: int) -> pandas.DataFrame:
    """The samples that a run's validation kept, sorted by problem."""
    lines = (run / "validations" / f"{step}.jsonl").read_text().splitlines()
    frame = pandas.DataFrame([json.loads(line) for line in lines])
    prompts = pandas.read_parquet(work.data / "val.parquet")["prompt"]
    number = {prompt[0]["content"]: i for i, prompt in enumerate(prompts)}
    # "user\n3+4-2=?\nassistant\n", the special tokens left out
    frame["number"] = [number[text.split("\n")[1]] for text in frame["input"]]
    return frame.sort_values("number")
