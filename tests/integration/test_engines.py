"""What the start says of each engine and rollout, and the loss behind the engines that no test here runs as a whole."""

import json
import os
import re
import subprocess
import sys

import pytest

from cppo_verl import presets
from cppo_verl.integration import engines
from cppo_verl.integration.engines import State
from cppo_verl.trust_region.metrics import PREFIX
from tests import ROOT

PACKAGES = {"megatron": "megatron-core==0.16.1", "mbridge": "mbridge==0.15.1", "veomni": "veomni==0.1.12"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "0", "--timeout", "15"]
NO_NETWORK = ("No matching distribution", "ConnectionPool", "Connection")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """By engine; torchtitan's alone where pip has no way to get the others' wheels."""
    folder = str(tmp_path_factory.mktemp("engines"))
    got = run(*PIP, "install", "--no-deps", "--target", folder, *PACKAGES.values())
    if got.returncode and any(words in got.stderr for words in NO_NETWORK):
        names = ["torchtitan"]
    else:
        assert got.returncode == 0, got.stderr
        names = ["megatron", "veomni", "torchtitan"]
    done = run(sys.executable, "-W", "ignore", "-m", "tests.integration.other_engines", folder, *names)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def run(*command: str) -> subprocess.CompletedProcess:
    values = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=300)


@pytest.mark.stack
@pytest.mark.parametrize(("engine", "rounding"), [("megatron", 1e-6), ("veomni", 0.0), ("torchtitan", 0.0)])
def test_verls_other_engines_get_fsdps_loss(engine: str, rounding: float, found: dict):
    """Their forward steps, inputs to metrics; the model between is a stand-in, and so is torchtitan."""
    if engine not in found:
        pytest.skip(f"pip has no way to get {' '.join(PACKAGES.values())}")
    loss, gradient, metrics = (found[engine][key] for key in ("loss", "gradient", "metrics"))
    expected = found["fsdp"]["metrics"]
    assert loss == pytest.approx(found["fsdp"]["loss"], rel=rounding, abs=0)
    assert gradient <= rounding and 0 < metrics[PREFIX + "masked_share"] < 1
    # Megatron's log-probs, from its own softmax, differ by a few 1e-7; the others call the same function as FSDP
    assert metrics == pytest.approx(expected, rel=10 * rounding, abs=rounding)


@pytest.mark.parametrize(
    ("strategy", "rollout", "estimator", "state"),
    [
        ("fsdp2", "vllm", "binary", State.WORKS),
        ("fsdp", "vllm", "topk", State.WORKS),
        ("fsdp2", "sglang", "binary", State.UNTRIED),
        ("fsdp2", "sglang", "topk", State.REFUSED),
        ("megatron", "vllm", "binary", State.UNTRIED),
        ("megatron", "vllm", "topk", State.REFUSED),
        ("veomni", "vllm", "topk", State.REFUSED),
        ("torchtitan", "trtllm", "binary", State.UNTRIED),
        ("another", "vllm", "binary", State.UNTRIED),
    ],
)
def test_the_start_says_what_was_tried(strategy: str, rollout: str, estimator: str, state: State):
    config = presets.compose("cppo", ["actor_rollout_ref.rollout.n=8"])
    config.actor_rollout_ref.actor.strategy, config.actor_rollout_ref.rollout.name = strategy, rollout
    config.actor_rollout_ref.actor.policy_loss.estimator = estimator
    assert engines.status(strategy, rollout, estimator)[0] is state
    notes, problems = list(engines.notes(config)), list(engines.problems(config))
    assert (len(notes), len(problems)) == (state is State.UNTRIED, state is State.REFUSED)
    for said in notes:
        assert f"strategy={strategy}" in said and f"rollout.name={rollout}" in said and engines.GAP in said
    for said in problems:
        assert (f"={strategy}" in said or f"={rollout}" in said) and "estimator=topk" in said and "set it to" in said


def test_the_page_says_the_same():
    section = (ROOT / "docs/gpu.md").read_text().split("## Engines and rollouts")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    said = {name: binary for names, binary, _ in rows for name in re.findall(r"\w+", names)}
    for name, (state, _) in {**engines.ENGINES, **engines.ROLLOUTS}.items():
        assert said[name].startswith("works" if state is State.WORKS else "never run"), name


def test_skipping_an_update_needs_an_engine_that_looks():
    config = presets.compose("cppo", ["actor_rollout_ref.actor.policy_loss.on_nonfinite=skip"])
    assert list(engines.problems(config)) == []
    config.actor_rollout_ref.actor.strategy = "megatron"
    (said,) = engines.problems(config)
    assert "on_nonfinite=skip" in said and "strategy=megatron" in said and "raise" in said
