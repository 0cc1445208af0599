"""What the metrics of a validation cost: verl's bootstrap, and the same by arrays (cppo_verl.integration.bootstrap).

    python -m benchmarks.validation --questions 128 --samples 2 8     # the quickstart's, and four times as many samples

Both are timed in turn in one process; that they give the same numbers is checked in every round.
"""

import argparse
import contextlib
import random
import statistics
import time

from verl.trainer.ppo.metric_utils import process_validation_metrics

from cppo_verl.integration import bootstrap


def answers(questions: int, samples: int) -> tuple[list[str], list[str], dict[str, list]]:
    """Data sources, question ids and what the quickstart's reward says of as many random answers."""
    draw = random.Random(0)
    ids = [str(question) for question in range(questions) for _ in range(samples)]
    right = [draw.random() < 0.5 for _ in ids]
    score = [1.0 if each else -1.0 for each in right]
    pred = [str(draw.randrange(4)) for _ in ids]
    return ["arithmetic"] * len(ids), ids, {"reward": score, "score": score, "acc": right, "pred": pred}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for samples in options.samples:
        seconds: dict[str, list[float]] = {"verl": [], "arrays": []}
        for _ in range(options.rounds):
            found = []
            for name, way in (("verl", contextlib.nullcontext()), ("arrays", bootstrap.quick())):
                with way:
                    began = time.perf_counter()
                    found.append(process_validation_metrics(*answers(options.questions, samples)))
                    seconds[name].append(time.perf_counter() - began)
            assert found[0] == found[1]
        verl, arrays = (statistics.median(each) for each in seconds.values())
        print(
            f"{options.questions} questions x {samples} samples: verl {verl:.2f} s, arrays {arrays:.2f} s, "
            f"{verl / arrays:.0f} to 1 (medians of {options.rounds})"
        )


if __name__ == "__main__":
    main()
