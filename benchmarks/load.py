"""50,000 responses at once through verl's reward loop and the package's reward function: time, memory, wrong scores.

    python -m benchmarks.load                     # verl's scorer behind bounds (data_prep/math_reward.py)
    python -m benchmarks.load --math-verify       # and the second look at answers that differ as text

All are given to one ``RewardLoopWorker`` of verl's as concurrent tasks, as the agent loops do within a Ray actor, each
with its own tensors; every score is compared with what it has to be. One response in eight is hostile. A step of
training at 512 prompts x 16 samples has 8,192 responses.
"""

import argparse
import asyncio
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

from cppo_verl import presets

ROOT = Path(__file__).parent.parent
WORK = "We add the numbers one after another and check the sum. "
HOSTILE = ("Answer: " + "9" * 4000, "Answer: " + "{" * 3000, "Answer:\n" * 500, "\x00\u202e Answer: \\frac{" * 40)


def save_byte_tokenizer(folder: Path) -> None:
    """A tokenizer of 256 bytes, which holds any text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)


def response(number: int) -> tuple[str, str, bool]:
    """Text, ground truth, and whether it is right."""
    truth = str(number % 1000)
    if number % 8 == 7:
        return HOSTILE[number // 8 % len(HOSTILE)], truth, False
    right = number % 3 != 0
    return WORK * (1 + number % 20) + f"\nAnswer: {truth if right else int(truth) + 1}", truth, right


def request(worker: RewardLoopWorker, number: int) -> DataProto:
    """What an agent loop hands over for one response."""
    text, truth, _ = response(number)
    ids = torch.tensor([worker.input_tokenizer.encode(text)])
    fields = {"data_source": "math_dapo", "reward_model": {"ground_truth": truth}, "extra_info": {"index": number}}
    return DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
        non_tensors={name: np.array([value], dtype=object) for name, value in fields.items()},
    )


async def score(worker: RewardLoopWorker, number: int) -> float:
    return (await worker.compute_score(request(worker, number)))["reward_score"]


async def score_all(worker: RewardLoopWorker, count: int) -> list[float]:
    worker.reward_manager.loop = asyncio.get_running_loop()
    return await asyncio.gather(*(score(worker, number) for number in range(count)))


def make_worker(folder: Path, math_verify: bool) -> RewardLoopWorker:
    """verl's worker with the composed config of a run."""
    save_byte_tokenizer(folder)
    overrides = [
        "actor_rollout_ref.rollout.n=8",
        f"actor_rollout_ref.model.path={folder}",
        f"reward.custom_reward_function.path={ROOT / 'data_prep/math_reward.py'}",
        "reward.custom_reward_function.name=compute_score",
        f"+reward.custom_reward_function.reward_kwargs.math_verify={str(math_verify).lower()}",
    ]
    return RewardLoopWorker(presets.compose("cppo", overrides))


class PeakOfFamily(threading.Thread):
    """Largest sum of resident memory of this process and its children, sampled ten times a second, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.1):
            self.peak = max(self.peak, sum(_resident(process) for process in (own, *own.children(recursive=True))))


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def main() -> None:
    """Print one line a count; status 1 where a score is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, nargs="+", default=[1000, 50_000])
    parser.add_argument("--math-verify", action="store_true")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        worker = make_worker(Path(folder), arguments.math_verify)
        print("responses  seconds  responses/s  MB before  MB peak  wrong scores")
        for count in arguments.responses:
            before, watch = psutil.Process().memory_info().rss, PeakOfFamily()
            watch.start()
            began = time.perf_counter()
            scores = asyncio.run(score_all(worker, count))
            seconds = time.perf_counter() - began
            watch.done.set()
            watch.join()
            wrong = sum(got != (1.0 if response(number)[2] else -1.0) for number, got in enumerate(scores))
            failed += wrong
            sizes = f"{before / 1e6:9.0f}  {watch.peak / 1e6:7.0f}"
            print(f"{count:9d}  {seconds:7.1f}  {count / seconds:11.0f}  {sizes}  {wrong:12d}", flush=True)
    print(f"peak of this process by the kernel: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
