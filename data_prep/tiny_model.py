"""The tiny Qwen3 itself, its tokenizer and its warm start: what ``data_prep.tiny_qwen3`` needs torch for."""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data_prep import supervised
from data_prep.arithmetic import LARGEST, chat_prompt, partial_results, reference_solution, solution_text
from data_prep.arithmetic_reward import compute_score
from data_prep.supervised import Example, Trainer, encode
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
    """A token for each printable ASCII character, the newline and ChatML's roles; a turn ends with the eos token."""
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


def careless_results(expression: str, error_rate: float, rng: random.Random) -> list[int]:
    """Partial results with errors; each line after an error is computed from the wrong value.

    With probability ``error_rate`` a result is moved off by an amount that keeps it and what follows digits, where
    there is such an amount. A later error never repairs an earlier one, so one error spoils the answer.
    """
    right, offset, written = partial_results(expression), 0, []
    for position, value in enumerate(right):
        rest = right[position:]
        others = [o for o in range(-min(rest), LARGEST - max(rest) + 1) if o not in (0, offset)]
        if others and rng.random() < error_rate:
            offset = rng.choice(others)
        written.append(value + offset)
    return written


def is_right(expression: str, response: str) -> bool:
    """What the quickstart's reward says."""
    return bool(compute_score("arithmetic", response, str(partial_results(expression)[-1]))["acc"])


def warm_start(r: Recipe, expressions: Sequence[str]) -> tuple[Trainer, dict[str, float]]:
    """Train on reference solutions until samples are nearly always right, then on careless ones until they are not.

    Returns:
        the trainer with the model, and the accuracies of its samples: after the first phase, and at the end.
    """
    tokenizer, rng = build_tokenizer(), random.Random(r.seed)
    measured_on, trained_on = supervised.held_out(expressions, r.held_out)
    examples = [encode(tokenizer, chat_prompt(e), "", e) for e in measured_on]
    trainer = Trainer(build_model(tokenizer, r), tokenizer, examples, is_right, MAX_NEW_TOKENS)

    def batches(write: Callable[[str], str]) -> Iterator[list[Example]]:
        while True:
            chosen = rng.choices(trained_on, k=r.batch)
            yield [encode(tokenizer, chat_prompt(e), write(e), e) for e in chosen]

    def careless_solution(expression: str) -> str:
        return solution_text(expression, careless_results(expression, r.error_rate, rng))

    computing = trainer.until(
        batches(reference_solution),
        lambda accuracy: accuracy >= r.computing_accuracy,
        r.learning_rate,
        r.computing_check_every,
        r.computing_max_steps,
    )
    trainer.until(
        batches(careless_solution),
        lambda accuracy: accuracy <= r.careless_accuracy,
        r.careless_learning_rate,
        r.careless_check_every,
        r.careless_max_steps,
    )
    accuracy = trainer.accuracy_within(r.lowest, r.highest, samples=4)["accuracy"]
    return trainer, {"sampled_accuracy_computing": computing, "sampled_accuracy": accuracy}
