"""A tiny Qwen3 with a character-level tokenizer, warm-started on the arithmetic data so that RL has work left to do.

`python -m data_prep.tiny_qwen3 --data DIR --out MODEL_DIR` trains for under a minute on two cores. The training
solutions carry errors: each partial result is wrong with probability ``error_rate``, and the lines after it go on from
the wrong value. The model thus learns the computation together with the noise: its most likely answer is mostly right
while its samples, at temperature 1, are right about one time in three, which is what RL sharpens. Training stops by
the measured accuracy of samples on rows of the train split that it does not train on.
"""

import argparse
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data_prep import storage
from data_prep.arithmetic import Expression, allowed_moves, apply_move, parse_expression, partial_results, solution_text

PAD, TURN_START, TURN_END = "<pad>", "<|im_start|>", "<|im_end|>"
UNKNOWN = "<unk>"
SPECIAL = [PAD, UNKNOWN, TURN_START, TURN_END, "system\n", "user\n", "assistant\n"]
CHARACTERS = ["\n", *map(chr, range(ord(" "), ord("~") + 1))]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORED = -100
MAX_NEW_TOKENS = 64


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character (printable ASCII and newline) beside the special ones; a turn ends with the eos token."""
    vocabulary = {token: index for index, token in enumerate([PAD, UNKNOWN, TURN_START, TURN_END, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
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


def build_model(tokenizer, seed, layers=2, hidden=128):
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, dtype="float32")
    return Qwen3ForCausalLM(config)
