"""The tiny model: tokenizer, the errors it is taught, and a real warm start on short expressions."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep import arithmetic, storage, supervised, tiny_model, tiny_qwen3
from data_prep.arithmetic import Arguments, partial_results
from data_prep.supervised import WarmStartError
from data_prep.tiny_qwen3 import Recipe
from tests import ROOT

# Two lines, learned in a third of the steps of the quickstart's.
SHORT_DATA = Arguments(train=500, val=20, min_operands=3, max_operands=3)
SHORT = Recipe(layers=1, hidden=64, held_out=128, error_rate=0.5, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    arithmetic.prepare(folder, SHORT_DATA)
    return folder


@pytest.fixture(scope="module")
def model_folder(data: Path) -> Path:
    assert tiny_qwen3.prepare(data, data.parent / "models" / "tiny", SHORT)
    return data.parent / "models" / "tiny"


@pytest.fixture
def expressions(data: Path) -> list[str]:
    return tiny_qwen3.read_expressions(data / "train.parquet")


def test_characters_and_roles_are_tokens(tokenizer):
    for text in ("3+4=7\nAnswer: 5", "the user's assistant is a system;\n", "".join(map(chr, range(32, 127)))):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("12-3=9\n") == ["1", "2", "-", "3", "=", "9", "\n"]
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]


def test_chat_prompt_is_chatml_and_ends_where_the_assistant_starts(tokenizer):
    messages = arithmetic.chat_prompt("1+2")
    example = supervised.encode(tokenizer, messages, "1+2=3", "1+2")
    text = "<|im_start|>user\n1+2=?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.prompt) == text and len(example.prompt) == 13
    assert tokenizer.decode(example.solution) == "1+2=3<|im_end|>" and tokenizer.eos_token == "<|im_end|>"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == example.prompt


def test_an_error_spoils_the_rest_and_stays_in_range():
    rng, first_wrong = random.Random(5), 0
    drawn = [arithmetic.expression_at(rng.randrange(9**5), 5) for _ in range(4000)]
    for expression in drawn:
        right, written = partial_results(expression), tiny_model.careless_results(expression, 0.35, rng)
        assert all(0 <= value <= 9 for value in written)
        wrong = [a != b for a, b in zip(right, written, strict=True)]
        assert wrong == sorted(wrong)
        first_wrong += wrong[0]
    free = sum(max(partial_results(e)) - min(partial_results(e)) < 9 for e in drawn)
    assert abs(first_wrong / free - 0.35) < 4 * (0.35 * 0.65 / free) ** 0.5


def test_warm_start_lands_in_the_window_and_is_what_the_loaders_expect(model_folder: Path, expressions: list[str]):
    manifest = storage.read_manifest(model_folder)
    assert manifest is not None and SHORT.lowest <= manifest["sampled_accuracy"] <= SHORT.highest
    assert manifest["sampled_accuracy_computing"] >= SHORT.computing_accuracy
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    assert type(model).__name__ == "Qwen3ForCausalLM" and model.dtype == torch.float32
    assert tokenizer.get_vocab() == tiny_model.build_tokenizer().get_vocab()
    assert tokenizer.chat_template == tiny_model.CHAT_TEMPLATE
    assert os.listdir(model_folder.parent) == [model_folder.name]
    again = tiny_model.new_trainer(SHORT, expressions)
    again.model = model
    torch.manual_seed(1)  # two measurements of 512 samples each
    sampled = again.accuracy(4)["accuracy"]
    assert sampled == pytest.approx(manifest["sampled_accuracy"], abs=4 * (2 * 0.25 / 512) ** 0.5)


def test_second_call_does_nothing_and_knows_so_without_torch(model_folder: Path, data: Path):
    before = {path.name: path.stat().st_mtime_ns for path in model_folder.iterdir()}
    assert not tiny_qwen3.prepare(data, model_folder, SHORT)
    assert {path.name: path.stat().st_mtime_ns for path in model_folder.iterdir()} == before
    source = "import sys, data_prep.tiny_qwen3; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_missed_accuracy_raises_and_leaves_the_earlier_model(model_folder: Path, data: Path):
    before = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    hopeless = replace(SHORT, seed=1, computing_max_steps=2, computing_check_every=2)
    with pytest.raises(WarmStartError, match="after 2 steps"):
        tiny_qwen3.prepare(data, model_folder, hopeless, report=lambda line: None)
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == before


def test_same_seed_same_weights(expressions: list[str]):
    weights = []
    for seed in (0, 0, 1):
        steps = {"computing_max_steps": 3, "computing_check_every": 3, "computing_accuracy": 0.0}
        recipe = replace(
            SHORT, seed=seed, held_out=16, careless_check_every=1, careless_accuracy=1.0, lowest=0.0, **steps
        )
        run, _ = tiny_model.warm_start(replace(recipe, highest=1.0), expressions, lambda line: None)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_foreign_folders_and_missing_data_are_refused(tmp_path: Path, data: Path, expressions: list[str]):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not of this command"):
        tiny_qwen3.prepare(data, tmp_path, SHORT)
    with pytest.raises(SystemExit, match=r"data_prep\.arithmetic"):
        tiny_qwen3.main(["--data", str(tmp_path), "--out", str(tmp_path / "model")])
    with pytest.raises(ValueError, match="train has 500 rows"):
        tiny_model.new_trainer(replace(SHORT, held_out=251), expressions)
