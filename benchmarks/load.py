"""50,000 responses at once through verl's reward loop and the package's reward function: time, memory, wrong scores.

    python -m benchmarks.load                     # verl's scorer behind bounds (data_prep/math_reward.py)
    python -m benchmarks.load --math-verify       # and the second look at answers that differ as text

All are given to one ``RewardLoopWorker`` of verl's as concurrent tasks, as the agent loops do within a Ray actor, each
with its own tensors; every score is compared with what it has to be. One response in eight is hostile.
"""

import argparse
import asyncio
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

from cppo_verl import presets
from data_prep.tiny_model import build_tokenizer

REWARD = Path(__file__).parent.parent / "data_prep/math_reward.py"
WORK = "We add the numbers one after another and check the sum. "
HOSTILE = ("Answer: " + "9" * 4000, "Answer: " + "{" * 3000, "Answer:\n" * 500, "\x00\u202e Answer: \\frac{" * 40)


def response(number: int) -> tuple[str, str, float]:
    """Text, ground truth, and the score it has to get."""
    truth = str(number % 1000)
    if number % 8 == 7:
        return HOSTILE[number // 8 % len(HOSTILE)], truth, -1.0
    right = number % 3 != 0
    return WORK * (1 + number % 20) + f"\nAnswer: {truth if right else int(truth) + 1}", truth, 1.0 if right else -1.0


async def wrong_scores(worker: RewardLoopWorker, count: int) -> int:
    """Of so many responses at once, each handed over as an agent loop does."""
    worker.reward_manager.loop = asyncio.get_running_loop()

    async def is_wrong(number: int) -> bool:
        text, truth, expected = response(number)
        ids = torch.tensor([worker.input_tokenizer.encode(text)])
        fields = {"data_source": "math_dapo", "reward_model": {"ground_truth": truth}, "extra_info": {"index": number}}
        data = DataProto.from_dict(
            tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
            non_tensors={name: np.array([value], dtype=object) for name, value in fields.items()},
        )
        return (await worker.compute_score(data))["reward_score"] != expected

    return sum(await asyncio.gather(*map(is_wrong, range(count))))


def main() -> None:
    """Print one line a count; status 1 where a score is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, nargs="+", default=[1000, 50_000])
    parser.add_argument("--math-verify", action="store_true")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer().save_pretrained(folder)
        overrides = [
            "actor_rollout_ref.rollout.n=8",
            f"actor_rollout_ref.model.path={folder}",
            f"reward.custom_reward_function.path='{REWARD}'",
            "reward.custom_reward_function.name=compute_score",
            f"+reward.custom_reward_function.reward_kwargs.math_verify={str(arguments.math_verify).lower()}",
        ]
        worker = RewardLoopWorker(presets.compose("cppo", overrides))
        print("responses  seconds  responses/s  peak MB  wrong scores")
        for count in arguments.responses:
            began = time.perf_counter()
            wrong = asyncio.run(wrong_scores(worker, count))
            seconds, failed = time.perf_counter() - began, failed + wrong
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            print(f"{count:9d}  {seconds:7.1f}  {count / seconds:11.0f}  {peak:7.0f}  {wrong:12d}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
