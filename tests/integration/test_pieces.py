"""Pieces put together are what the tokenizer decodes, for every kind of tokenizer and any tokens."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from cppo_verl.integration.pieces import pieces

END = "<|end|>"
TEXT = ["hello world, the sum of twelve isn't  it . ( 12 )"] * 10
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁▁", "▁The", "The", "▁sum", "a", "12", "答", "é", "\n", "�"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=280, special_tokens=[END], initial_alphabet=alphabet))
    return made


def llama() -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(["<unk>", END, *BYTES, *WORDS])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([END])
    return made


def metaspace() -> Tokenizer:
    scores = [(token, -1.0) for token in ["<unk>", END, *BYTES, *WORDS]]
    made = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.add_special_tokens([END])
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=True)
    made.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", END]))
    return made


def fast(made: Tokenizer, cleans: bool = False) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, clean_up_tokenization_spaces=cleans)


TOKENIZERS = {
    "byte level": fast(byte_level()),
    "llama": fast(llama()),
    "metaspace": fast(metaspace()),
    "word piece": fast(word_piece(), cleans=True),
    "python, bytes": ByT5Tokenizer(extra_ids=2),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_tokens_and_any_text_cut_off_anywhere(name):
    """3,000 random sequences in all; ids that no token has among them, which decode to nothing."""
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    highest = len(tokenizer) + 2 * tokenizer.is_fast
    sequences = [rng.integers(0, highest, size=length).tolist() for length in rng.integers(0, 60, size=600)]
    for text in ("hello 🙂 The 答案 é", "plain  words", "\n\n  x<|end|> a"):
        ids = tokenizer.encode(text)
        sequences += [ids[:end] for end in range(len(ids) + 1)]
    for ids in sequences:
        found = pieces(tokenizer, ids)
        assert len(found) == len(ids)
        assert "".join(found) == tokenizer.decode(ids), ids


def test_a_token_has_its_own_text():
    tokenizer = TOKENIZERS["llama"]
    smile = [f"<0x{byte:02X}>" for byte in "🙂".encode()]
    ids = tokenizer.convert_tokens_to_ids(["▁The", "▁sum", *smile, "a", "<0xF0>"])
    assert pieces(tokenizer, ids) == ["The", " sum", "", "", "", "🙂", "a", "�"]
    ids = TOKENIZERS["word piece"].convert_tokens_to_ids(["the", "hello", "the", "(", "12"])
    assert pieces(TOKENIZERS["word piece"], ids) == ["the", " hello", " the", " (", " 12"]


@pytest.mark.parametrize("name", ["byte level", "llama"])
def test_hostile_bytes_take_time_as_their_number(name):
    """Random bytes, and a long text that its last byte undoes; counted in tokens that are decoded, not in seconds."""
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    first = tokenizer.convert_tokens_to_ids("<0x00>") if name == "llama" else 1
    for ids in (rng.integers(first, first + 256, 4000), first + np.frombuffer(b"\xc3\xa9" * 2000 + b"\xff", np.uint8)):
        decoded = Counting(tokenizer)
        assert "".join(pieces(decoded, ids.tolist())) == tokenizer.decode(ids.tolist())
        assert decoded.tokens < 100 * len(ids)


class Counting:
    def __init__(self, tokenizer):
        self.tokenizer, self.tokens = tokenizer, 0

    def decode(self, ids, **options):
        self.tokens += len(ids)
        return self.tokenizer.decode(ids, **options)
