"""Supervised training on worked answers, and accuracy of samples: what both warm starts are made of."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cppo_verl import estimates
from data_prep import commands

NO_TARGET = -100


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt up to the assistant's turn and of a worked answer with its end; ``row`` is its origin."""

    prompt: list[int]
    solution: list[int]
    row: Any


def held_out(rows: Sequence[Any], count: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """The first ``count`` rows, to measure on, and the others, to train on; a ValueError where these are fewer."""
    if len(rows) < 2 * count:
        raise ValueError(f"the file has {len(rows)} rows: the warm start needs {2 * count} or more")
    return rows[:count], rows[count:]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], solution: str, row: Any) -> Example:
    """A conversation and the answer to it as token ids."""
    text = str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
    prompt, answer = (tokenizer.encode(part, add_special_tokens=False) for part in (text, solution))
    return Example(prompt, [*answer, tokenizer.eos_token_id], row)


def encode_batch(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and next-token targets, both (batch, length) int64; targets are NO_TARGET but for solutions.

    They are padded on the right, where a causal model needs no mask.
    """
    rows = [torch.tensor(e.prompt + e.solution) for e in examples]
    targets = [torch.tensor([NO_TARGET] * (len(e.prompt) - 1) + e.solution + [NO_TARGET]) for e in examples]
    padded = torch.nn.utils.rnn.pad_sequence
    return padded(rows, True, pad), padded(targets, True, NO_TARGET)


def measure(right: Sequence[Sequence[bool]]) -> dict[str, float]:
    """accuracy, standard_error over rows, and pass@n: the share of rows with a right one among their n samples."""
    shares = [sum(row) / len(row) for row in right]
    found = {"accuracy": fmean(shares), "standard_error": estimates.standard_error(shares) or 0.0}
    return found | {f"pass@{len(right[0])}": fmean(map(any, right))}


@dataclass
class Trainer:
    """AdamW on one model, measured by samples of up to ``longest`` tokens for examples that it is not trained on.

    ``is_right`` says whether a response answers a row; ``dtype`` is the arithmetic's, weights stay float32.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    held_out: Sequence[Example]
    is_right: Callable[[Any, str], bool]
    longest: int
    dtype: torch.dtype = torch.float32
    fused: bool | None = None
    step: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        weights = self.model.parameters()
        self.optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0, fused=self.fused)

    def update(self, batch: Sequence[Example], learning_rate: float) -> float:
        """One step; returns the loss, in nats a token of a solution."""
        ids, targets = encode_batch(batch, self.tokenizer.pad_token_id)
        with self._precision():
            logits = self.model(input_ids=ids).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.step += 1
        self.tokens += sum(len(e.prompt) + len(e.solution) for e in batch)
        return loss.item()

    @torch.no_grad()
    def accuracy(self, samples: int = 1) -> dict[str, float]:
        """``measure`` of that many samples for each held-out example, at temperature 1 from the whole distribution."""
        prompts = {"input_ids": [example.prompt for example in self.held_out]}
        batch = self.tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
        with self._precision():
            ids = self.model.generate(  # type: ignore[operator]  # transformers types generate's self as a protocol
                **batch,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self.longest,
                num_return_sequences=samples,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        texts = self.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        rows = [example.row for example in self.held_out for _ in range(samples)]
        right = [self.is_right(row, text) for row, text in zip(rows, texts, strict=True)]
        return measure([right[start : start + samples] for start in range(0, len(right), samples)])

    def until(
        self,
        batches: Iterator[Sequence[Example]],
        reached: Callable[[float], bool],
        learning_rate: float,
        check_every: int,
        most: int,
        warmup: int = 1,
    ) -> float:
        """Update until the sampled accuracy, looked at every ``check_every`` steps, is ``reached``; returns it.

        The learning rate rises over ``warmup`` steps. After ``most`` steps of this call it is a RuntimeError.
        """
        accuracy = math.nan
        for done in range(1, most + 1):
            loss = self.update(next(batches), learning_rate * min(1.0, done / warmup))
            if done % check_every == 0:
                accuracy = self.accuracy()["accuracy"]
                commands.say(f"step {self.step}: loss {loss:.3f}, sampled accuracy {accuracy:.3f}")
                if reached(accuracy):
                    return accuracy
        raise RuntimeError(
            f"sampled accuracy {accuracy:.3f} after {most} steps of the warm start is not what was wanted: easier "
            "tasks, more rows, another seed or learning rate; nothing was saved"
        )

    def accuracy_within(self, lowest: float, highest: float, samples: int) -> dict[str, float]:
        """``accuracy``; a RuntimeError where it does not lie between the two."""
        found = self.accuracy(samples)
        if not lowest <= found["accuracy"] <= highest:
            raise RuntimeError(
                f"sampled accuracy after the warm start = {found['accuracy']:.3f}, wanted {lowest} to {highest}: "
                "another seed or --target, or finer steps (--check-every); nothing was saved"
            )
        return found

    def _precision(self) -> Any:
        # entered anew for each update: it keeps the weights that it has rounded
        return nullcontext() if self.dtype is torch.float32 else torch.autocast("cpu", self.dtype)
