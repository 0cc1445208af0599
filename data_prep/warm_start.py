"""A short supervised start on worked answers, after which a model's samples are right often enough to learn from.

`python -m data_prep.warm_start --model MODEL_DIR --data DIR --out DIR` trains any causal language model of a local
folder on rows of DIR/warm.parquet (data_prep/reasoning_gym_data.py), which no other split holds. It stops when samples
for other rows of that file are right as often as ``Recipe.target`` says, measures accuracy and pass@8 on them, and
writes model, tokenizer and manifest.json with what it cost.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from data_prep import commands, reasoning_gym_reward, storage, supervised
from data_prep.supervised import Example, Trainer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLES = 8  # a question, for pass@8
WARMUP = 5  # updates over which the learning rate rises


@dataclass(frozen=True)
class Recipe:
    """Settings of the supervised phase; accuracies are shares of 0..1 of samples at temperature 1.

    Training stops at ``target``, measured every ``check_every`` updates of ``batch`` rows with a sample for each row
    ``held_out``. The final measurement has to lie in ``lowest`` to ``highest``. ``learning_rate`` is AdamW's after
    WARMUP updates, ``dtype`` the arithmetic's; the weights are float32.
    """

    seed: int = 0
    held_out: int = 64
    batch: int = 32
    learning_rate: float = 1e-4
    target: float = 0.3
    lowest: float = 0.2
    highest: float = 0.5
    check_every: int = 10
    max_steps: int = 400
    max_new_tokens: int = 16
    dtype: str = "float32"  # or bfloat16


def read_examples(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The rows of a warm.parquet, in its order; a ValueError where one has no worked answer."""
    examples = []
    for row in pandas.read_parquet(file).to_dict("records"):
        solution = row["extra_info"]["solution"]
        if not solution:
            raise ValueError(
                f"{row['data_source']} in {file} has no worked answer: reasoning-gym gives none for this task, so that "
                "it cannot be started from; leave it out of --tasks"
            )
        examples.append(supervised.encode(tokenizer, row["prompt"], solution, row))
    return examples


def is_right(row: Mapping[str, Any], response: str) -> bool:
    """Full marks from the run's own reward."""
    truth = row["reward_model"]["ground_truth"]
    return bool(reasoning_gym_reward.compute_score(row["data_source"], response, truth, row["extra_info"])["acc"])


def batches(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches without end; every example is used before one comes again."""
    queue: list[Example] = []
    while True:
        while len(queue) < size:
            queue += rng.sample(examples, len(examples))
        yield queue[:size]
        queue = queue[size:]


def prepare(model: Path, data: Path, out: Path, r: Recipe) -> bool:
    """Make the warm-started model in ``out``; False where the same recipe made it there from the same model and data.

    Raises:
        OSError, ValueError: no model, data that cannot be used, or something else in ``out``.
        RuntimeError: the accuracy wanted was not reached, or passed; nothing was saved.
    """
    if r.dtype not in DTYPES:
        raise ValueError(f"dtype = {r.dtype}: give {' or '.join(DTYPES)}")
    file, weights = data / "warm.parquet", sorted([*model.glob("*.safetensors"), *model.glob("*.bin")])
    made_from = {path.name: storage.sha256_of(path) for path in weights}
    arguments = asdict(r) | {"data": storage.sha256_of(file), "model": made_from}

    def work() -> tuple[Any, Any, dict[str, Any]]:
        torch.manual_seed(r.seed)
        tokenizer = AutoTokenizer.from_pretrained(model)
        measured_on, trained_on = supervised.held_out(read_examples(file, tokenizer), r.held_out)
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        network.train()
        trainer = Trainer(network, tokenizer, measured_on, is_right, r.max_new_tokens, DTYPES[r.dtype], fused=True)
        before = trainer.accuracy()["accuracy"]
        commands.say(f"before the warm start: sampled accuracy {before:.3f}")
        if before < r.target:
            drawn = batches(trained_on, r.batch, random.Random(r.seed))
            trainer.until(drawn, lambda a: a >= r.target, r.learning_rate, r.check_every, r.max_steps, WARMUP)
        found = trainer.accuracy_within(r.lowest, r.highest, SAMPLES)
        return network, tokenizer, {"steps": trainer.step, "tokens": trainer.tokens, **found}

    return storage.make_model(out, "warm_start", arguments, work)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    commands.prepare("warm_start", __doc__, prepare, Recipe, ["model", "data", "out"], argv)


if __name__ == "__main__":
    main()
