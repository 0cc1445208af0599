"""The tiny Qwen3 itself, its tokenizer and its warm start: what ``data_prep.tiny_qwen3`` needs torch for."""

import random
import time
from collections.abc import Callable, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data_prep.arithmetic import (
    DATA_SOURCE,
    Expression,
    chat_prompt,
    partial_results,
    reference_solution,
    solution_text,
)
from data_prep.arithmetic_reward import compute_score
from data_prep.tiny_qwen3 import Recipe

PAD, UNKNOWN, TURN_START, TURN_END = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
ROLES = ["system", "user", "assistant"]
CHARACTERS = ["\n", *map(chr, range(ord(" "), ord("~") + 1))]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_TARGET = -100
MAX_NEW_TOKENS = 64

Write = Callable[[Expression], str]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character, the newline and the role names of the ChatML template.

    The end of a turn is the eos token; other characters become the unknown token.
    """
    tokens = [PAD, UNKNOWN, TURN_START, TURN_END, *ROLES, *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*ROLES, r"[\s\S]"])), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen3ForCausalLM:
    """A float32 Qwen3 with tied embeddings and exactly the tokenizer's vocabulary; seeds torch's global generator.

    verl masks logits beyond len(tokenizer) in the rollout engine only, so a larger vocabulary would make the engine's
    probabilities differ from the trainer's.
    """
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        head_dim=recipe.head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def careless_results(expression: Expression, error_rate: float, limit: int, rng: random.Random) -> list[int]:
    """Partial results with errors; each line after an error is computed from the wrong value.

    With probability ``error_rate`` a result is moved off by an amount that keeps it and what follows within 0..limit,
    where there is such an amount. A later error never repairs an earlier one, so one error spoils the answer.
    """
    right, offset, written = partial_results(expression), 0, []
    for position, value in enumerate(right):
        rest = right[position:]
        others = [o for o in range(-min(rest), limit - max(rest) + 1) if o not in (0, offset)]
        if others and rng.random() < error_rate:
            offset = rng.choice(others)
        written.append(value + offset)
    return written


def encode_prompt(tokenizer: PreTrainedTokenizerFast, expression: Expression) -> list[int]:
    """Token ids of the chat prompt, up to and including the start of the assistant's turn."""
    text = tokenizer.apply_chat_template(chat_prompt(expression), add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(str(text), add_special_tokens=False)


def encode_batch(
    tokenizer: PreTrainedTokenizerFast, expressions: Sequence[Expression], write: Write
) -> tuple[Tensor, Tensor]:
    """Prompts with solutions written by ``write``, padded on the right.

    Returns:
        ids and next-token targets, both (batch, length) int64; targets are NO_TARGET but for the solution and its eos.
    """
    rows, targets = [], []
    for expression in expressions:
        prompt = encode_prompt(tokenizer, expression)
        solution = [*tokenizer.encode(write(expression), add_special_tokens=False), tokenizer.eos_token_id]
        rows.append(torch.tensor(prompt + solution))
        targets.append(torch.tensor([NO_TARGET] * (len(prompt) - 1) + solution + [NO_TARGET]))
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad(targets, batch_first=True, padding_value=NO_TARGET),
    )


@torch.no_grad()
def sample_responses(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, expressions: Sequence[Expression], samples: int
) -> list[str]:
    """``samples`` responses an expression at temperature 1, untruncated; those of one expression lie side by side."""
    prompts = [encode_prompt(tokenizer, expression) for expression in expressions for _ in range(samples)]
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    ids = model.generate(  # type: ignore[misc]  # transformers types generate's self as a protocol that models miss
        **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS
    )
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def sampled_accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, expressions: Sequence[Expression], samples: int = 1
) -> float:
    """Share of sampled responses that the quickstart's reward calls right."""
    answers = [str(partial_results(expression)[-1]) for expression in expressions for _ in range(samples)]
    responses = sample_responses(model, tokenizer, expressions, samples)
    scores = [compute_score(DATA_SOURCE, *pair)["acc"] for pair in zip(responses, answers, strict=True)]
    return sum(scores) / len(scores)


class WarmStart:
    """Supervised training of one model on one list of expressions, measured on another."""

    def __init__(self, recipe: Recipe, expressions: Sequence[Expression], report: Callable[[str], None] = print):
        if len(expressions) < 2 * recipe.held_out:
            raise ValueError(f"train has {len(expressions)} rows: the warm start needs {2 * recipe.held_out} or more")
        self.recipe, self.report, self.started, self.step = recipe, report, time.monotonic(), 0
        self.held_out, self.train = expressions[: recipe.held_out], expressions[recipe.held_out :]
        self.limit = max(max(partial_results(expression)) for expression in expressions)
        self.rng = random.Random(recipe.seed)
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer, recipe)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)

    def learn_to_compute(self) -> float:
        """Train on reference solutions until samples are nearly always right; returns their accuracy."""
        r = self.recipe
        self._set_learning_rate(r.learning_rate)
        return self._train_until(
            reference_solution, lambda a: a >= r.computing_accuracy, r.computing_check_every, r.computing_max_steps
        )

    def learn_to_be_careless(self) -> float:
        """Train on solutions with errors until samples are as careless as wanted; returns their accuracy."""
        r = self.recipe
        self._set_learning_rate(r.careless_learning_rate)
        return self._train_until(
            self._careless_solution, lambda a: a <= r.careless_accuracy, r.careless_check_every, r.careless_max_steps
        )

    def final_accuracy(self) -> float:
        """Accuracy of four samples for each held-out expression.

        Raises:
            RuntimeError: it lies outside the recipe's window.
        """
        accuracy = sampled_accuracy(self.model, self.tokenizer, self.held_out, samples=4)
        if not self.recipe.lowest <= accuracy <= self.recipe.highest:
            raise RuntimeError(
                f"sampled accuracy after the warm start = {accuracy:.3f}, wanted {self.recipe.lowest} to "
                f"{self.recipe.highest}: try another seed, or more training rows; nothing was saved"
            )
        return accuracy

    def _train_until(self, write: Write, reached: Callable[[float], bool], check_every: int, max_steps: int) -> float:
        accuracy = float("nan")
        for step in range(1, max_steps + 1):
            loss = self._update(write)
            if step % check_every == 0:
                accuracy = sampled_accuracy(self.model, self.tokenizer, self.held_out)
                seconds = time.monotonic() - self.started
                self.report(f"step {self.step}: loss {loss:.3f}, sampled accuracy {accuracy:.3f}, {seconds:.0f} s")
                if reached(accuracy):
                    return accuracy
        raise RuntimeError(
            f"sampled accuracy {accuracy:.3f} after {max_steps} steps of the warm start is not where it should be: "
            "try another seed, or more training rows; nothing was saved"
        )

    def _update(self, write: Write) -> float:
        ids, targets = encode_batch(self.tokenizer, self.rng.choices(self.train, k=self.recipe.batch), write)
        logits = self.model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _careless_solution(self, expression: Expression) -> str:
        return solution_text(expression, careless_results(expression, self.recipe.error_rate, self.limit, self.rng))

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
