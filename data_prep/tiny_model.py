"""The tiny Qwen3 itself, its tokenizer and its warm start: what ``data_prep.tiny_qwen3`` needs torch for."""

import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data_prep import supervised
from data_prep.arithmetic import Expression, chat_prompt, partial_results, reference_solution, solution_text
from data_prep.arithmetic_reward import compute_score
from data_prep.supervised import Example
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
MAX_NEW_TOKENS = 64


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


def is_right(expression: Expression, response: str) -> bool:
    """What the quickstart's reward says."""
    return bool(compute_score("arithmetic", response, str(partial_results(expression)[-1]))["acc"])


class WarmStart(supervised.Trainer):
    """Supervised training of the tiny model on one list of expressions, measured on another."""

    def __init__(self, recipe: Recipe, expressions: Sequence[Expression], report: Callable[[str], None] = print):
        if len(expressions) < 2 * recipe.held_out:
            raise ValueError(f"train has {len(expressions)} rows: the warm start needs {2 * recipe.held_out} or more")
        tokenizer = build_tokenizer()
        held_out = [supervised.encode(tokenizer, chat_prompt(e), "", e) for e in expressions[: recipe.held_out]]
        super().__init__(build_model(tokenizer, recipe), tokenizer, held_out, is_right, MAX_NEW_TOKENS)
        self.recipe, self.report, self.started = recipe, report, time.monotonic()
        self.train, self.rng = expressions[recipe.held_out :], random.Random(recipe.seed)
        self.limit = max(max(partial_results(expression)) for expression in expressions)

    def learn_to_compute(self) -> float:
        """Train on reference solutions until samples are nearly always right; returns their accuracy."""
        r, drawn = self.recipe, self._batches(reference_solution)
        check, most = r.computing_check_every, r.computing_max_steps
        return self.until(
            drawn, lambda step: r.learning_rate, lambda found: found >= r.computing_accuracy, check, most, self.report
        )

    def learn_to_be_careless(self) -> float:
        """Train on solutions with errors until samples are as careless as wanted; returns their accuracy."""
        r, drawn = self.recipe, self._batches(self._careless_solution)
        rate, check, most = r.careless_learning_rate, r.careless_check_every, r.careless_max_steps
        return self.until(
            drawn, lambda step: rate, lambda found: found <= r.careless_accuracy, check, most, self.report
        )

    def final_accuracy(self) -> float:
        """Accuracy of four samples for each held-out expression; a WarmStartError outside the recipe's window."""
        accuracy = self.accuracy(4)["accuracy"]
        self.require(accuracy, self.recipe.lowest, self.recipe.highest)
        return accuracy

    def _batches(self, write: Callable[[Expression], str]) -> Iterator[list[Example]]:
        while True:
            chosen = self.rng.choices(self.train, k=self.recipe.batch)
            yield [supervised.encode(self.tokenizer, chat_prompt(e), write(e), e) for e in chosen]

    def _careless_solution(self, expression: Expression) -> str:
        return solution_text(expression, careless_results(expression, self.recipe.error_rate, self.limit, self.rng))
