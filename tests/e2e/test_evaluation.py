"""``cppo-verl eval`` and verl's in-training validation, on the same weights and problems. Real Ray, FSDP2 and vLLM."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import psutil
import pytest

from cppo_verl import estimates
from tests import ROOT, stand_in

from .conftest import Resumed
from .runs import SAMPLED, Work, ended_well, logged, validation

METRIC = "val-core/arithmetic/acc/mean@"
EACH = """
import json, sys
from cppo_verl.cli.main import main
for command in json.loads(sys.argv[1]):
    if status := main(["eval", *command]):
        sys.exit(status)
"""


def environment() -> dict[str, str]:
    """With the stand-in for flash attention, which a checkpoint of ``resumed`` asks for."""
    return {**stand_in.environment(), "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def evaluate(*commands: list[object]) -> None:
    """``cppo-verl eval`` with each of these arguments, one after the other in one process."""
    command = [sys.executable, "-c", EACH, json.dumps([list(map(str, arguments)) for arguments in commands])]
    ended_well(subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600))


def written(out: Path) -> tuple[dict, pandas.DataFrame]:
    """Summary and samples of a finished evaluation."""
    return json.loads((out / "summary.json").read_text()), pandas.read_parquet(out / "samples.parquet")


def plain(work: Work) -> list[object]:
    """Everything that a run's config would say, for a model that has no run."""
    reward = ROOT / "data_prep/arithmetic_reward.py"
    return [work.model, "--data", work.data / "val.parquet", "--reward-file", reward, "--max-response-length", 64]


def agree_problem_by_problem(work: Work, run: Path, step: int, evaluation: Path) -> None:
    summary, samples = written(evaluation)
    expected = validation(work, run, step)
    assert len(expected) == len(samples) == 128
    assert list(expected["number"]) == list(samples["number"])
    assert list(expected["output"]) == list(samples["response"])
    assert list(expected["acc"].astype(float)) == list(samples["acc"])
    assert list(expected["score"]) == list(samples["reward"])
    assert summary["verl_metrics"][METRIC + "1"] == pytest.approx(logged(run)[step][METRIC + "1"], abs=1e-12)


def kill_in_mid_stream(arguments: list[object]) -> None:
    """Start an evaluation and kill it behind its twentieth problem; nothing of it stays."""
    command = [sys.executable, "-m", "cppo_verl.cli.main", "eval", *map(str, arguments), "--vllm", "max_num_seqs=16"]
    first = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    for line in first.stdout or ():
        children = psutil.Process(first.pid).children(recursive=True)
        if "20/128 problems saved" in line:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(0.5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_greedy_evaluation_equals_validation_and_goes_on_when_killed(work: Work, resumed: Resumed):
    """Of a model without a run, killed; and of the shards of two FSDP ranks, with data, reward and sizes of the run."""
    run, greedy = resumed.run, ["--n", 1, "--temperature", 0]
    shards = sorted(p.name for p in (run / "checkpoints/global_step_4/actor").glob("model_*.pt"))
    assert shards == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"]
    before, after = work.folder / "eval-greedy", run / "eval/global_step_4"
    without_run = [*plain(work), *greedy, "--out", before, "--part-size", 1]
    kill_in_mid_stream(without_run)
    saved = {part: part.stat().st_mtime_ns for part in (before / "parts").glob("*.parquet")}
    assert 20 <= len(saved) < 128
    evaluate(without_run, [run, *greedy])
    assert {part: part.stat().st_mtime_ns for part in saved} == saved
    agree_problem_by_problem(work, run, 0, before)
    agree_problem_by_problem(work, run, 4, after)
    assert 0.2 < written(before)[0]["mean"]["mean"] < 1
    assert list(written(before)[1]["response"]) != list(written(after)[1]["response"])  # training did change the model


def test_sampled_evaluation_agrees_within_the_standard_error(work: Work, own_rule: Path):
    samples = validation(work, own_rule, 0)
    theirs = estimates.clustered([list(group.astype(float)) for _, group in samples.groupby("number")["acc"]])
    assert theirs.mean == pytest.approx(logged(own_rule)[0][f"{METRIC}{SAMPLED['n']}"], abs=1e-9)
    out = work.folder / "eval-sampled"
    evaluate([*plain(work), *(f"--{key.replace('_', '-')}={value}" for key, value in SAMPLED.items()), "--out", out])
    ours = written(out)[0]["mean"]
    error = math.hypot(theirs.sampling_error, ours["sampling_error"])
    assert 0 < error < 0.03
    assert abs(ours["mean"] - theirs.mean) < 4 * error
