"""Pieces put together are what the tokenizer decodes, and each token has its own text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cppo_verl.integration.pieces import pieces

END = "<|end|>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁▁", "▁The", "The", "▁sum", "a", "12", "答", "é", "\n", "�"]


def byte_level() -> Tokenizer:
    """As GPT's and Qwen's, without merges: a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: number for number, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([END])
    return made


def llama() -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(["<unk>", END, *BYTES, *WORDS])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([END])
    return made


def fast(made: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, clean_up_tokenization_spaces=False)


TOKENIZERS = {"byte level": fast(byte_level()), "llama": fast(llama())}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_text_cut_off_anywhere(name):
    tokenizer = TOKENIZERS[name]
    for text in ("hello 🙂 The 答案 é", "plain  words", "\n\n  x<|end|> a"):
        ids = tokenizer.encode(text)
        for end in range(len(ids) + 1):
            found = pieces(tokenizer, ids[:end])
            assert len(found) == end
            assert "".join(found) == tokenizer.decode(ids[:end])


def test_a_token_has_its_own_text():
    tokenizer = TOKENIZERS["llama"]
    smile = [f"<0x{byte:02X}>" for byte in "🙂".encode()]
    ids = tokenizer.convert_tokens_to_ids(["▁The", "▁sum", *smile, "a", "<0xF0>"])
    assert pieces(tokenizer, ids) == ["The", " sum", "", "", "", "🙂", "a", "�"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_bytes_take_time_as_their_number(name):
    """Counted in tokens that are decoded, not in seconds."""
    tokenizer = TOKENIZERS[name]
    first = tokenizer.convert_tokens_to_ids("<0x00>") if name == "llama" else 0
    ids = np.random.default_rng(0).integers(first, first + 256, 4000).tolist()
    decoded = []

    class Counting:
        def decode(self, some, **options):
            decoded.extend(some)
            return tokenizer.decode(some, **options)

    assert len(pieces(Counting(), ids)) == len(ids)
    assert len(decoded) < 40 * len(ids)
