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

from cppo_verl.evaluation import estimates
from tests import ROOT

from .conftest import Work
from .test_stack import quickstart, records

EVAL = [sys.executable, "-m", "cppo_verl.cli.main", "eval"]
METRIC = "val-core/arithmetic/acc/mean@{n}"
GREEDY = ("--n", "1", "--temperature", "0")
SAMPLED = {"n": 8, "temperature": 0.7, "top_p": 0.95}


def environment() -> dict[str, str]:
    return {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def evaluate(out: Path, *arguments: object) -> tuple[dict, pandas.DataFrame]:
    """Summary and samples of a finished evaluation."""
    command = [*EVAL, *map(str, arguments), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((out / "summary.json").read_text()), pandas.read_parquet(out / "samples.parquet")


def plain(work: Work) -> list[object]:
    """Everything that a run's config would say, for a model that has no run."""
    reward = ROOT / "data_prep/arithmetic_reward.py"
    return [work.model, "--data", work.data / "val.parquet", "--reward-file", reward, "--max-response-length", 64]


def validate(work: Work, run: Path, *overrides: str, **values: str) -> None:
    values |= {"RUN": str(run), "RAY_ADDRESS": "local"}  # not a cluster that happens to be here, or was
    done = quickstart(work, f"trainer.validation_data_dir={run}/validation", *overrides, **values)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def dumped(work: Work, run: Path, step: int) -> pandas.DataFrame:
    """verl's dumped validation samples, with the number of the problem in the data file."""
    lines = (run / "validation" / f"{step}.jsonl").read_text().splitlines()
    frame = pandas.DataFrame([json.loads(line) for line in lines])
    prompts = pandas.read_parquet(work.data / "val.parquet")["prompt"]
    number = {prompt[0]["content"]: i for i, prompt in enumerate(prompts)}
    # "user\n3+4-2=?\nassistant\n", the special tokens left out
    frame["number"] = [number[text.split("\n")[1]] for text in frame["input"]]
    return frame.sort_values("number")


def logged(run: Path, step: int, n: int) -> float:
    return next(
        r["data"][METRIC.format(n=n)] for r in records(run) if METRIC.format(n=n) in r["data"] and r["step"] == step
    )


@pytest.fixture(scope="module")
def trained(work: Work) -> Path:
    """One training step on two ranks, with greedy validation before and after it."""
    run = work.folder / "agreement"
    validate(
        work,
        run,
        "actor_rollout_ref.actor.optim.lr=2e-3",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "actor_rollout_ref.rollout.val_kwargs.temperature=0",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=false",
        "trainer.test_freq=1",
        "trainer.save_freq=1",
        RANKS="2",
        STEPS="1",
    )
    return run


def agree_problem_by_problem(work: Work, run: Path, step: int, summary: dict, samples: pandas.DataFrame) -> None:
    expected = dumped(work, run, step)
    assert len(expected) == len(samples) == 128
    assert list(expected["number"]) == list(samples["number"])
    assert list(expected["output"]) == list(samples["response"])
    assert list(expected["acc"].astype(float)) == list(samples["acc"])
    assert list(expected["score"]) == list(samples["reward"])
    assert summary["verl_metrics"][METRIC.format(n=1)] == pytest.approx(logged(run, step, 1), abs=1e-12)


def test_greedy_evaluation_of_the_model_equals_validation_before_training(work: Work, trained: Path):
    summary, samples = evaluate(work.folder / "eval-greedy", *plain(work), *GREEDY)
    agree_problem_by_problem(work, trained, 0, summary, samples)
    assert 0.2 < summary["mean"]["mean"] < 1


def test_greedy_evaluation_of_two_fsdp_shards_equals_validation_after_the_step(work: Work, trained: Path):
    shards = sorted(p.name for p in (trained / "checkpoints/global_step_1/actor").glob("model_*.pt"))
    assert shards == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"]
    out = trained / "eval/global_step_1"
    summary, samples = evaluate(out, trained, *GREEDY)  # data, reward and lengths: the run's own
    agree_problem_by_problem(work, trained, 1, summary, samples)
    assert list(dumped(work, trained, 0)["output"]) != list(samples["response"])  # the step did change the model


def test_sampled_evaluation_agrees_within_the_standard_error(work: Work):
    run = work.folder / "sampled"
    overrides = [f"actor_rollout_ref.rollout.val_kwargs.{key}={value}" for key, value in SAMPLED.items()]
    validate(work, run, *overrides, "trainer.val_only=true")
    samples = dumped(work, run, 0)
    theirs = estimates.clustered([list(group.astype(float)) for _, group in samples.groupby("number")["acc"]])
    assert theirs.mean == pytest.approx(logged(run, 0, SAMPLED["n"]), abs=1e-9)
    options = [part for key, value in SAMPLED.items() for part in (f"--{key.replace('_', '-')}", value)]
    ours = evaluate(work.folder / "eval-sampled", *plain(work), *options)[0]["mean"]
    error = math.hypot(theirs.sampling_error, ours["sampling_error"])
    assert 0 < error < 0.03
    assert abs(ours["mean"] - theirs.mean) < 4 * error


def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(work: Work):
    arguments = [*plain(work), "--n", 2, "--part-size", 1]
    whole = evaluate(work.folder / "eval-whole", *arguments)[1]
    out = work.folder / "eval-killed"
    command = [*EVAL, *map(str, arguments), "--vllm", "max_num_seqs=4", "--out", str(out)]
    first = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    children: list[psutil.Process] = []
    for line in first.stdout:
        children = psutil.Process(first.pid).children(recursive=True)
        if "20/128 problems saved" in line:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(0.5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    parts = {p.name: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    assert 20 <= len(parts) < 128
    resumed = evaluate(out, *arguments)[1]
    assert all((out / "parts" / name).stat().st_mtime_ns == time_ for name, time_ in parts.items())
    assert list(resumed["number"]) == list(whole["number"])
    # other batches, other rounding: nearly all samples are the same, not all of them need be
    assert (resumed["response"] == whole["response"]).mean() > 0.98
