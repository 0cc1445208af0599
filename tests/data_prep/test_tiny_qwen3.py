"""The tiny model: tokenizer, the errors it is taught, and a real warm start on short expressions."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from data_prep import arithmetic, storage, tiny_model, tiny_qwen3
from data_prep.arithmetic import Arguments, Expression, partial_results, reference_solution
from data_prep.tiny_model import WarmStart
from data_prep.tiny_qwen3 import Recipe
from tests import ROOT

# Two or three operands: one or two lines, learned in a third of the steps of the quickstart's.
SHORT_DATA = Arguments(train=500, val=20, min_operands=3, max_operands=3)
SHORT = Recipe(layers=1, hidden=64, held_out=128, error_rate=0.5, learning_rate=1e-2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_model.build_tokenizer()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    arithmetic.prepare(folder, SHORT_DATA)
    return folder


@pytest.fixture(scope="module")
def model_folder(data: Path, one_thread: None) -> Path:
    assert tiny_qwen3.prepare(data, data.parent / "models" / "tiny", SHORT)
    return data.parent / "models" / "tiny"


@pytest.mark.parametrize(
    "text", ["3+4=7\n7-2=5\nAnswer: 5", "the user's assistant is a system;\n", "".join(map(chr, range(32, 127)))]
)
def test_tokenizer_round_trip(tokenizer: PreTrainedTokenizerFast, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_are_tokens_and_others_unknown(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.tokenize("12-3=9\n") == ["1", "2", "-", "3", "=", "9", "\n"]
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]


def test_chat_prompt_is_chatml_and_ends_where_the_assistant_starts(tokenizer: PreTrainedTokenizerFast):
    messages = [{"role": "user", "content": "1+2=?"}]
    text = "<|im_start|>user\n1+2=?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == text
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == tiny_model.encode_prompt(tokenizer, Expression(1, (("+", 2),)))
    assert len(ids) == 13 and tokenizer.decode(ids) == text
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id in ids


def test_model_fits_the_tokenizer_and_the_rollout_engine(tokenizer: PreTrainedTokenizerFast):
    model = tiny_model.build_model(tokenizer, Recipe())
    assert model.config.vocab_size == len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    assert model.config.head_dim >= 32
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_targets_are_the_next_tokens_of_the_solution_only(tokenizer: PreTrainedTokenizerFast):
    short, long = Expression(1, (("+", 2),)), Expression(3, (("+", 4), ("-", 2)))
    ids, targets = tiny_model.encode_batch(tokenizer, [short, long], reference_solution)
    for row, target, expression in zip(ids, targets, [short, long], strict=True):
        kept = target[target != tiny_model.NO_TARGET]
        assert tokenizer.decode(kept) == reference_solution(expression) + "<|im_end|>"
        position = int((target != tiny_model.NO_TARGET).nonzero()[0])
        assert torch.equal(row[position + 1 : position + 1 + len(kept)], kept)
        assert row[: position + 1].tolist() == tiny_model.encode_prompt(tokenizer, expression)


def test_careless_results_without_errors_are_right():
    expression = Expression(3, (("+", 4), ("-", 2)))
    assert tiny_model.careless_results(expression, 0.0, 9, random.Random(0)) == [7, 5]


def test_careless_results_stay_in_range_are_never_repaired_and_err_at_the_rate():
    drawn, rng = arithmetic.draw_expressions(Arguments(train=1500, val=1)), random.Random(0)
    first_wrong = 0
    for expression in drawn:
        right = partial_results(expression)
        written = tiny_model.careless_results(expression, 0.35, 9, rng)
        assert all(0 <= value <= 9 for value in written)
        wrong = [a != b for a, b in zip(right, written, strict=True)]
        assert wrong == sorted(wrong)
        first_wrong += wrong[0]
    free = sum(max(partial_results(e)) - min(partial_results(e)) < 9 for e in drawn)
    assert abs(first_wrong / free - 0.35) < 4 * (0.35 * 0.65 / free) ** 0.5


def test_warm_start_lands_in_the_window_and_knows_more_than_it_samples(model_folder: Path, data: Path):
    manifest = storage.read_manifest(model_folder)
    assert manifest is not None
    assert SHORT.lowest <= manifest["sampled_accuracy"] <= SHORT.highest
    assert manifest["sampled_accuracy_computing"] >= SHORT.computing_accuracy
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    held_out = tiny_qwen3.read_expressions(data / "train.parquet")[: SHORT.held_out]
    torch.manual_seed(1)
    sampled = tiny_model.sampled_accuracy(model, tokenizer, held_out, samples=4)
    # Two measurements of 512 samples each.
    assert sampled == pytest.approx(manifest["sampled_accuracy"], abs=4 * (2 * 0.25 / 512) ** 0.5)


def test_saved_folder_is_what_the_loaders_expect(model_folder: Path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    assert type(model).__name__ == "Qwen3ForCausalLM" and model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.get_vocab() == tiny_model.build_tokenizer().get_vocab()
    assert tokenizer.chat_template == tiny_model.CHAT_TEMPLATE
    assert os.listdir(model_folder.parent) == [model_folder.name]


def test_second_call_does_nothing(model_folder: Path, data: Path):
    before = {path.name: path.stat().st_mtime_ns for path in model_folder.iterdir()}
    assert not tiny_qwen3.prepare(data, model_folder, SHORT)
    assert {path.name: path.stat().st_mtime_ns for path in model_folder.iterdir()} == before


def test_whether_there_is_something_to_do_is_known_without_torch():
    source = "import sys, data_prep.tiny_qwen3; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_missed_accuracy_raises_and_leaves_the_earlier_model(model_folder: Path, data: Path):
    before = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    hopeless = replace(SHORT, seed=1, computing_max_steps=2, computing_check_every=2)
    with pytest.raises(RuntimeError, match="after 2 steps"):
        tiny_qwen3.prepare(data, model_folder, hopeless, report=lambda line: None)
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == before


def test_accuracy_outside_the_window_is_refused(data: Path, one_thread: None):
    expressions = tiny_qwen3.read_expressions(data / "train.parquet")
    untrained = WarmStart(replace(SHORT, held_out=16), expressions)
    with pytest.raises(RuntimeError, match="wanted 0.2 to 0.5"):
        untrained.final_accuracy()


def test_same_seed_same_weights(data: Path, one_thread: None):
    expressions = tiny_qwen3.read_expressions(data / "train.parquet")
    runs = [WarmStart(replace(SHORT, seed=seed, held_out=16), expressions, lambda line: None) for seed in (0, 0, 1)]
    weights = []
    for run in runs:
        torch.manual_seed(run.recipe.seed)
        run._train_until(reference_solution, lambda accuracy: True, check_every=3, max_steps=3)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_foreign_folders_and_missing_data_are_refused(tmp_path: Path, data: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not of this command"):
        tiny_qwen3.prepare(data, tmp_path, SHORT)
    with pytest.raises(FileNotFoundError, match="data_prep.arithmetic"):
        tiny_qwen3.prepare(tmp_path, tmp_path / "model", SHORT)
    with pytest.raises(SystemExit) as stopped:
        tiny_qwen3.main(["--data", str(tmp_path), "--out", str(tmp_path / "model")])
    assert stopped.value.code == 1
    with pytest.raises(ValueError, match="train has 500 rows"):
        WarmStart(replace(SHORT, held_out=251), tiny_qwen3.read_expressions(data / "train.parquet"))
