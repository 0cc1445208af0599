"""A tiny Qwen3 with a character-level tokenizer, warm-started on the arithmetic data so that RL has work left to do.

`python -m data_prep.tiny_qwen3 --data DIR --out MODEL_DIR` trains on reference solutions until the model computes, then
on solutions with errors until it is careless: its most likely answer stays right more often than its samples at
temperature 1, of which about one in three is right. Both phases end by the accuracy of samples for rows of the train
split that are kept out, scored as the quickstart's reward scores them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas

from data_prep import commands, storage


@dataclass(frozen=True)
class Recipe:
    """The model's sizes and the warm start's settings; learning rates are AdamW's, accuracies shares of 0..1."""

    seed: int = 0
    layers: int = 2
    hidden: int = 128
    heads: int = 4
    head_dim: int = 32
    batch: int = 32
    held_out: int = 256
    learning_rate: float = 3e-3
    computing_accuracy: float = 0.85
    computing_check_every: int = 25
    computing_max_steps: int = 900
    careless_learning_rate: float = 5e-4
    careless_accuracy: float = 0.4
    careless_check_every: int = 5
    careless_max_steps: int = 150
    error_rate: float = 0.35
    lowest: float = 0.2
    highest: float = 0.5


def prepare(data: Path, out: Path, recipe: Recipe) -> bool:
    """Make the warm-started model in ``out``; False where the same recipe made it there from the same data.

    Raises:
        OSError, ValueError: data that cannot be used, or something else in ``out``.
        RuntimeError: the accuracy wanted was not reached, or passed; nothing was saved.
    """
    train_file = data / "train.parquet"

    def work() -> tuple[Any, Any, dict[str, Any]]:
        from data_prep.tiny_model import warm_start  # with torch, which a second start can do without

        try:
            expressions = [info["expression"] for info in pandas.read_parquet(train_file)["extra_info"]]
        except KeyError as error:
            raise ValueError(f"{train_file} has rows without {error}: make it with data_prep.arithmetic") from None
        trainer, found = warm_start(recipe, expressions)
        return trainer.model, trainer.tokenizer, {"seed": recipe.seed, "steps": trainer.step, **found}

    arguments = asdict(recipe) | {"train_sha256": storage.sha256_of(train_file)}
    return storage.make_model(out, "tiny_qwen3", arguments, work)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    commands.prepare("tiny_qwen3", __doc__, prepare, Recipe, ["data", "out"], argv)


if __name__ == "__main__":
    main()
