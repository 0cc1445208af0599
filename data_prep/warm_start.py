"""A short supervised start on worked answers, after which a model's samples are right often enough to learn from.

`python -m data_prep.warm_start --model MODEL_DIR --data DIR --out DIR` trains any causal language model of a local
folder on the rows of DIR/warm.parquet (data_prep/reasoning_gym_data.py), which no other split holds. It stops when
samples at temperature 1 are right as often as ``Recipe.target`` says on rows of that file that are kept out of the
training, measures accuracy and pass@8 on them, and writes model, tokenizer and manifest.json with what it cost. A
folder that the same recipe made from the same model and data is left alone.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data_prep import model_folder, reasoning_gym_reward, storage

KIND = "warm_start"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLES = 8  # a question, for pass@8
NO_TARGET = -100
WEIGHTS = ("*.safetensors", "*.bin")


class WarmStartError(RuntimeError):
    """The accuracy wanted was not reached, or was passed; nothing was saved."""


@dataclass(frozen=True)
class Recipe:
    """Settings of the supervised phase; accuracies are shares of 0..1 of samples at temperature 1.

    Attributes:
        held_out: rows to measure on. batch: rows an update. learning_rate: of AdamW, after ``warmup`` updates.
        target: training stops there. lowest, highest: what the final measurement has to lie in.
        check_every: updates between measurements, which take one sample a row.
        max_new_tokens: of a sample; set it to the run's longest response.
        dtype: of the arithmetic; the weights that are trained and saved are float32.
    """

    seed: int = 0
    held_out: int = 64
    batch: int = 32
    learning_rate: float = 1e-4
    warmup: int = 5
    target: float = 0.3
    lowest: float = 0.2
    highest: float = 0.5
    check_every: int = 10
    max_steps: int = 400
    max_new_tokens: int = 16
    dtype: str = "float32"


@dataclass(frozen=True)
class Example:
    """A row: token ids of the prompt up to the assistant's turn, and of the worked answer with its end."""

    prompt: list[int]
    solution: list[int]
    row: Mapping[str, Any]


def read_examples(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The rows of a warm.parquet, in its order.

    Raises:
        FileNotFoundError: no such file. ValueError: a row without a worked answer.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: write it with data_prep.reasoning_gym_data --warm ROWS")
    examples = []
    for row in pandas.read_parquet(file).to_dict("records"):
        solution = row["extra_info"]["solution"]
        if not solution:
            raise ValueError(
                f"{row['data_source']} in {file} has no worked answer: reasoning-gym gives none for this task, so that "
                "it cannot be started from; leave it out of --tasks"
            )
        text = tokenizer.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, tokenize=False)
        prompt = tokenizer.encode(str(text), add_special_tokens=False)
        answer = tokenizer.encode(solution, add_special_tokens=False)
        examples.append(Example(prompt, [*answer, tokenizer.eos_token_id], row))
    return examples


def encode_batch(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts and solutions, padded on the right.

    Returns:
        ids, attention mask and next-token targets, each (batch, length) int64; targets are NO_TARGET but for solutions.
    """
    rows = [torch.tensor(e.prompt + e.solution) for e in examples]
    targets = [torch.tensor([NO_TARGET] * (len(e.prompt) - 1) + e.solution + [NO_TARGET]) for e in examples]
    padded = torch.nn.utils.rnn.pad_sequence
    ids = padded(rows, batch_first=True, padding_value=pad)
    mask = padded([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask, padded(targets, batch_first=True, padding_value=NO_TARGET)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    samples: int,
    max_new_tokens: int,
) -> list[list[str]]:
    """``samples`` responses an example at temperature 1, untruncated distribution."""
    batch = tokenizer.pad({"input_ids": [e.prompt for e in examples]}, padding_side="left", return_tensors="pt")
    ids = model.generate(  # type: ignore[operator]  # transformers types generate's self as a protocol
        **batch,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        num_return_sequences=samples,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def is_right(example: Example, response: str) -> bool:
    """Full marks from the run's own reward."""
    row = example.row
    truth = row["reward_model"]["ground_truth"]
    verdict = reasoning_gym_reward.compute_score(row["data_source"], response, truth, row["extra_info"])
    return bool(verdict["acc"])


def measure(right: Sequence[Sequence[bool]]) -> dict[str, float]:
    """accuracy with its standard error over rows, and pass@n (share of rows with a right sample); ``right`` is a list
    of samples for each row."""
    means = [sum(row) / len(row) for row in right]
    accuracy = sum(means) / len(means)
    spread = sum((mean - accuracy) ** 2 for mean in means) / max(1, len(means) - 1)
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(spread / len(means)),
        f"pass@{len(right[0])}": sum(map(any, right)) / len(right),
    }


class WarmStart:
    """Supervised training of one model on one list of examples, measured on another."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], r: Recipe
    ):
        if len(examples) < 2 * r.held_out:
            raise ValueError(f"warm has {len(examples)} rows: the warm start needs {2 * r.held_out} or more (--warm)")
        if r.dtype not in DTYPES:
            raise ValueError(f"--dtype {r.dtype}: give one of {', '.join(DTYPES)}")
        self.recipe, self.model, self.tokenizer, self.step, self.tokens = r, model, tokenizer, 0, 0
        self.held_out, self.train = examples[: r.held_out], list(examples[r.held_out :])
        self.rng, self.queue = random.Random(r.seed), list[Example]()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=r.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def until_target(self, report: Callable[[str], None]) -> None:
        """Train until the samples are right often enough.

        Raises:
            WarmStartError: they were not within ``max_steps``.
        """
        r, accuracy, loss = self.recipe, self.accuracy(1)["accuracy"], math.nan
        report(f"before the warm start: sampled accuracy {accuracy:.3f}")
        while accuracy < r.target:
            if self.step >= r.max_steps:
                raise WarmStartError(
                    f"sampled accuracy {accuracy:.3f} after {self.step} steps of the warm start, wanted {r.target}: "
                    "easier tasks, more --warm rows or a larger --learning-rate; nothing was saved"
                )
            for _ in range(r.check_every):
                loss = self.update()
            accuracy = self.accuracy(1)["accuracy"]
            report(f"step {self.step}: loss {loss:.3f}, sampled accuracy {accuracy:.3f}")

    def update(self) -> float:
        """One AdamW step on a batch; every row is used before one comes again. Returns the loss, in nats a token."""
        ids, mask, targets = encode_batch(self._next_batch(), self.tokenizer.pad_token_id)
        wanted = targets != NO_TARGET
        with self._precision():
            logits = self.model(input_ids=ids, attention_mask=mask).logits[wanted]
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[wanted])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * min(1.0, self.step / max(1, self.recipe.warmup))
        self.optimizer.step()
        self.tokens += int(mask.sum())
        return loss.item()

    def accuracy(self, samples: int) -> dict[str, float]:
        """``measure`` of that many samples for each row that is not trained on."""
        with self._precision():
            drawn = sample(self.model, self.tokenizer, self.held_out, samples, self.recipe.max_new_tokens)
        pairs = zip(self.held_out, drawn, strict=True)
        return measure([[is_right(example, text) for text in texts] for example, texts in pairs])

    def _precision(self) -> AbstractContextManager[object]:
        # entered anew for each update: it keeps the weights that it has rounded
        return torch.autocast("cpu", DTYPES[self.recipe.dtype], enabled=self.recipe.dtype != "float32")

    def _next_batch(self) -> list[Example]:
        while len(self.queue) < self.recipe.batch:
            self.queue += self.rng.sample(self.train, len(self.train))
        taken, self.queue = self.queue[: self.recipe.batch], self.queue[self.recipe.batch :]
        return taken


def prepare(model: Path, data: Path, out: Path, recipe: Recipe, report: Callable[[str], None] = print) -> bool:
    """Make the warm-started model in ``out``; False where the same recipe made it there from the same model and data.

    Raises:
        FileNotFoundError, ValueError: no model, no warm.parquet, rows without worked answers, or too few of them.
        FileExistsError: ``out`` holds something else than a warm start.
        WarmStartError: the accuracy wanted was not reached, or passed; nothing was saved.
    """
    file = data / "warm.parquet"
    arguments = asdict(recipe) | {"data": fingerprint(file), "model": fingerprint_of_model(model)}
    if storage.is_current(out, arguments):
        return False
    model_folder.check_replaceable(out, KIND)
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network.train()
    warm = WarmStart(network, tokenizer, read_examples(file, tokenizer), recipe)
    warm.until_target(report)
    found = warm.accuracy(SAMPLES)
    if not recipe.lowest <= found["accuracy"] <= recipe.highest:
        raise WarmStartError(
            f"sampled accuracy after the warm start = {found['accuracy']:.3f}, wanted {recipe.lowest} to "
            f"{recipe.highest}: set --target, or --check-every for finer steps; nothing was saved"
        )
    seconds = round(time.monotonic() - started, 1)
    cost = {"steps": warm.step, "tokens": warm.tokens, "seconds": seconds}
    manifest = {"kind": KIND, "arguments": arguments, "parameters": network.num_parameters(), **cost, **found}
    model_folder.save(out, network, tokenizer, manifest)
    report(
        f"{out}: sampled accuracy {found['accuracy']:.3f} +- {found['standard_error']:.3f}, pass@{SAMPLES} "
        f"{found[f'pass@{SAMPLES}']:.3f}, {warm.step} steps, {warm.tokens} tokens, {seconds:.0f} s"
    )
    return True


def fingerprint(file: Path) -> str:
    """The file's sha256, empty where there is none (which is said later, by who needs it)."""
    return storage.sha256_of(file) if file.is_file() else ""


def fingerprint_of_model(folder: Path) -> dict[str, str]:
    """sha256 of a model folder's weights, by file name.

    Raises:
        FileNotFoundError: the folder has no weights.
    """
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors): not a model in Hugging Face's format")
    return {path.name: storage.sha256_of(path) for path in files}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m data_prep.warm_start", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face model folder")
    parser.add_argument("--data", type=Path, required=True, help="folder that data_prep.reasoning_gym_data wrote")
    parser.add_argument("--out", type=Path, required=True, help="model folder, replaced whole")
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="(%(default)s)")
    options = vars(parser.parse_args(argv))
    model, data, out = (options.pop(name) for name in ("model", "data", "out"))
    try:
        written = prepare(model, data, out, Recipe(**options), lambda line: print(line, flush=True))
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if not written:
        print(f"{out}: already there, unchanged")


if __name__ == "__main__":
    main()
