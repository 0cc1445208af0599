"""What the metrics of a validation cost: verl's bootstrap, and the same by arrays (cppo_verl.integration.bootstrap).

    python -m benchmarks.validation --questions 128 --samples 2 8     # the quickstart's, and four times as many samples

Both are timed in turn in one process, after they gave the same numbers.
"""

import argparse
import random

import torch
from verl.trainer.ppo.metric_utils import process_validation_metrics

from cppo_verl.integration import bootstrap
from cppo_verl.selftest.timing import medians


def answers(questions: int, samples: int) -> tuple[list[str], list[str], dict[str, list]]:
    """Data sources, question ids and what the quickstart's reward says of as many random answers."""
    draw = random.Random(0)
    ids = [str(question) for question in range(questions) for _ in range(samples)]
    right = [draw.random() < 0.5 for _ in ids]
    score = [1.0 if each else -1.0 for each in right]
    pred = [str(draw.randrange(4)) for _ in ids]
    return ["arithmetic"] * len(ids), ids, {"reward": score, "score": score, "acc": right, "pred": pred}


def compare(questions: int, samples: int, rounds: int) -> str:
    """Median seconds of both ways on the same answers, once they gave the same numbers."""
    given = answers(questions, samples)

    def arrays() -> dict:
        with bootstrap.quick():
            return process_validation_metrics(*given)

    def verl() -> dict:
        return process_validation_metrics(*given)

    assert arrays() == verl()
    seconds = medians({"verl": verl, "arrays": arrays}, torch.device("cpu"), rounds, warm_up=0)
    return (
        f"{questions} questions x {samples} samples: verl {seconds['verl']:.2f} s, arrays {seconds['arrays']:.2f} s, "
        f"{seconds['verl'] / seconds['arrays']:.0f} to 1 (medians of {rounds})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for samples in options.samples:
        print(compare(options.questions, samples, options.rounds), flush=True)


if __name__ == "__main__":
    main()
