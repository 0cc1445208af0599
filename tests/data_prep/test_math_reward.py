"""The bounded scorer: verl's verdicts as they are, math-verify's where asked, and answers that try to break either."""

import asyncio
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.reward_score import default_compute_score

from data_prep import math_reward
from data_prep.math_reward import Server, compute_score
from tests.data_prep.hostile_answers import hostile_completions

COUNT = 1000
IN_THREADS = 300  # of those, some forty of which take all of their time: 14 s
LIMIT = 0.3
SCRIPT = Path(math_reward.__file__).with_name("math_verify_server.py")
KEYS = {"score", "acc", "pred", "timed_out"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    trace = tmp_path_factory.mktemp("code") / "t"
    return hostile_completions(COUNT, seed=1, path=str(trace)), trace


@pytest.fixture
def server() -> Any:
    server = Server()
    yield server
    server.stop()


def request(truth: str, pred: str, time_limit: float = 20.0, memory: int = 1024) -> dict[str, Any]:
    return {"truth": truth, "pred": pred, "time_limit": time_limit, "memory_limit_mib": memory}


def from_config(**reward_kwargs: Any) -> Any:
    """The function as verl loads it: by the file's path."""
    choice = {"path": math_reward.__file__, "name": "compute_score", "reward_kwargs": reward_kwargs}
    return get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": choice}}))


def score(response: str, truth: str = "5", **options: Any) -> dict[str, Any]:
    return compute_score("aime24", response, truth, **options)


@pytest.mark.parametrize(
    ("response", "truth", "reward", "pred"),
    [
        ("2 + 3 = 5\nAnswer: 5", "5", 1.0, "5"),
        ("Answer: 6\nno, wait\nAnswer: $5$", "5", 1.0, "5"),
        ("Answer: 5\nno, wait\nAnswer: 6", "5", -1.0, "6"),
        ("Answer: 1,234", "1234", 1.0, "1234"),
        ("so it is \\boxed{5}", "5", 1.0, "5"),
        ("it is 5", "5", -1.0, "[INVALID]"),
        ("", "5", -1.0, "[INVALID]"),
    ],
)
def test_verdicts_worked_by_hand(response: str, truth: str, reward: float, pred: str):
    expected = {"score": reward, "acc": reward == 1.0, "pred": pred, "timed_out": False}
    assert score(response, truth) == expected
    assert type(score(response, truth)["acc"]) is bool


def test_long_responses_are_scored_as_verl_scores_them():
    for filler in (0, 280, 300, 5000, 100_000):
        for last in ("Answer: 5", "Answer: 6", "\\boxed{5}", "Answer: 5" + " " * 299, "5" * 400):
            response = "x" * filler + "\n" + last
            ours, verls = score(response), default_compute_score("math_dapo", response, "5")
            assert {key: ours[key] for key in verls} == verls


def test_verl_loads_it_by_path_and_passes_its_own_arguments():
    function = from_config(math_verify=True, time_limit=20.0)
    info = {"index": 3, "num_turns": None, "rollout_reward_scores": {}}
    verdict = function(data_source="aime25", solution_str="Answer: 10/2", ground_truth="5", extra_info=info)
    assert verdict == {"score": 1.0, "acc": True, "pred": "10/2", "timed_out": False}


@pytest.mark.parametrize("pred", ["10/2", "\\frac{10}{2}", "5.0", "05", "\\sqrt{25}"])
def test_math_verify_accepts_equal_values_where_asked(pred: str):
    assert score(f"Answer: {pred}")["score"] == -1.0
    assert score(f"Answer: {pred}", math_verify=True, time_limit=20.0)["score"] == 1.0


def test_math_verify_refuses_other_values_and_sees_no_missing_answer(monkeypatch: pytest.MonkeyPatch):
    assert score("Answer: 11/2", math_verify=True, time_limit=20.0) == {
        "score": -1.0,
        "acc": False,
        "pred": "11/2",
        "timed_out": False,
    }
    monkeypatch.setattr(math_reward, "compare", lambda *args: pytest.fail("compared without need"))
    for response in ("5", "", "Answer: 5", "Answer: $ $"):
        score(response, math_verify=True)


def test_without_the_package_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(math_reward.importlib.util, "find_spec", lambda name: None)
    assert score("Answer: 5", math_verify=True)["acc"]
    with pytest.raises(ImportError, match=r"math_verify = true.*pip install math-verify"):
        score("Answer: 6", math_verify=True)


def test_a_ground_truth_nobody_can_reach_is_refused():
    with pytest.raises(ValueError, match="301 characters"):
        score("Answer: 5", "5" * 301)


@pytest.mark.parametrize("response", [None, 5, b"Answer: 5", math.nan])
def test_a_response_that_is_not_text_scores_as_empty(response: Any):
    assert score(response) == {"score": -1.0, "acc": False, "pred": "[INVALID]", "timed_out": False}


def test_hostile_completions_through_verls_scorer(hostile: tuple[list[str], Path]):
    completions, trace = hostile
    slowest = 0.0
    tracemalloc.start()
    for completion in completions:
        start = time.process_time()
        check(score(completion))
        slowest = max(slowest, time.process_time() - start)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{COUNT} completions, slowest {slowest * 1000:.1f} ms, peak {peak / 2**20:.2f} MiB")
    assert slowest < 0.5
    assert peak < 2**20
    assert not trace.exists()


def test_hostile_completions_through_math_verify_in_threads(hostile: tuple[list[str], Path]):
    completions, trace = hostile[0][:IN_THREADS], hostile[1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run(completion: str) -> dict[str, Any]:
        return score(completion, math_verify=True, time_limit=LIMIT)

    score("Answer: 6", math_verify=True, time_limit=20.0)
    start = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(run, completions))
    seconds, bounded = time.monotonic() - start, sum(verdict["timed_out"] for verdict in verdicts)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{IN_THREADS} in {seconds:.0f} s, {bounded} bounded, own peak grown by {grown / 1024:.1f} MiB")
    for verdict in verdicts:
        check(verdict)
    assert bounded >= 15
    assert seconds < IN_THREADS * (LIMIT + 0.5)
    assert grown < 64 * 1024
    assert not trace.exists()
    assert score("Answer: 10/2", math_verify=True, time_limit=20.0)["acc"]


def check(verdict: dict[str, Any]) -> None:
    """Complete, finite, +1 or -1, and fit for a log file."""
    assert set(verdict) == KEYS
    assert verdict["score"] in (1.0, -1.0)
    assert verdict["acc"] is (verdict["score"] == 1.0)
    assert "\0" not in verdict["pred"] and len(verdict["pred"]) <= 300
    json.dumps(verdict, ensure_ascii=False).encode("utf-8")
    if verdict["timed_out"]:
        assert verdict["score"] == -1.0


def test_a_comparison_ends_at_its_time_limit(server: Server):
    assert server.ask(request("5", "5")) == "equal"
    start = time.monotonic()
    assert server.ask(request("5", "99999999999!", time_limit=0.5)) == "bounded"
    assert 0.4 < time.monotonic() - start < 3.0
    assert server.ask(request("5", "6")) == "different"


def test_a_comparison_stays_within_its_memory_limit():
    """2^(10^10) has 1.25 GB of bits. A small process drives the server: a fork inherits its parent's peak."""
    program = (
        "import json, os, subprocess, sys\n"
        "server = subprocess.Popen([sys.executable, sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "server.stdin.write(sys.stdin.buffer.read()); server.stdin.close()\n"
        "words = server.stdout.read().decode().split()\n"
        "print(json.dumps([words, os.wait4(server.pid, 0)[2].ru_maxrss // 1024]))\n"
    )

    lines = [request("5", pred, 4.0, 256) for pred in ("2^{10^{10}}", "\\frac{10}{2}")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    ended = subprocess.run([sys.executable, "-c", program, str(SCRIPT)], input=text, capture_output=True, text=True)
    words, peak = json.loads(ended.stdout)
    assert words[0] == "ready" and words[1] != "equal" and words[2] == "equal"
    assert peak < 256


@pytest.mark.parametrize(
    ("statement", "limit", "error"),
    [
        ("bytearray(512 << 20)", 256, "MemoryError"),
        ("bytearray(512 << 20)", 2048, ""),
        ("open('file', 'wb', 0).write(b'x')", 2048, "File too large"),
    ],
)
def test_the_limits_themselves_from_inside(tmp_path: Path, statement: str, limit: int, error: str):
    """What would stop code that got through."""
    start = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import math_verify_server as server\n"
    program = f"{start}server.set_limits(30.0, {limit})\n{statement}\n"
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ended.returncode != 0) == bool(error) and error in ended.stderr


def test_a_killed_or_stopped_server_is_replaced(server: Server, monkeypatch: pytest.MonkeyPatch):
    assert server.ask(request("5", "5")) == "equal"
    server.process.kill()
    server.process.wait()
    assert server.ask(request("5", "5")) == "equal"
    monkeypatch.setattr(math_reward, "GRACE_SECONDS", 0.2)
    first = server.process.pid
    os.kill(first, signal.SIGSTOP)
    assert server.ask(request("5", "5", time_limit=0.5)) == "bounded"
    assert server.ask(request("5", "5")) == "equal"
    assert server.process.pid != first


def test_verls_reward_manager_takes_the_verdict():
    """The DAPO reward manager, in its event loop, with the function as the config names it."""
    import torch
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager

    from data_prep.tiny_model import build_tokenizer

    tokenizer = build_tokenizer()

    async def run(text: str) -> dict[str, Any]:
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        batch = DataProto.from_dict(
            tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
            non_tensors={
                "data_source": np.array(["aime24"], dtype=object),
                "reward_model": np.array([{"style": "rule", "ground_truth": "5"}], dtype=object),
                "extra_info": np.array([{"index": 0}], dtype=object),
            },
        )
        config = OmegaConf.create({"reward": {"reward_kwargs": {}}})
        function = from_config(math_verify=True, time_limit=LIMIT)
        DAPORewardManager.init_class(config, tokenizer)
        return await DAPORewardManager(config, tokenizer, function).run_single(batch)

    right = asyncio.run(run("Answer: 10/2"))
    assert right["reward_score"] == 1.0 and set(right["reward_extra_info"]) == KEYS
    wrong = asyncio.run(run("Answer: 99999999999!"))
    assert wrong["reward_score"] == -1.0 and wrong["reward_extra_info"]["timed_out"] is True


def test_validation_metrics_count_what_was_bounded():
    verdicts = [score("Answer: 5"), score("Answer: 6"), score("Answer: 99999999!", math_verify=True, time_limit=LIMIT)]
    verdicts += [score("Answer: 5")]
    infos = {key: [verdict[key] for verdict in verdicts] for key in KEYS}
    metrics = process_validation_metrics(["aime24"] * 4, ["a"] * 4, infos)["aime24"]
    assert metrics["acc"]["mean@4"] == 0.5
    assert metrics["timed_out"]["mean@4"] == 0.25
