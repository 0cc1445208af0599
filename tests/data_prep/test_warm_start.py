"""The supervised start, with a real model small enough to learn sums of single digits in seconds."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("reasoning_gym", reason="pip install 'cppo_verl[real]'")

from data_prep import model_folder, reasoning_gym_data, tiny_model, tiny_qwen3, warm_start  # noqa: E402
from data_prep.warm_start import NO_TARGET, Example, Recipe, WarmStart, WarmStartError  # noqa: E402

TASKS = "chain_sum(min_terms=2, max_terms=2, max_digits=1)"  # 162 questions; answers -8..18
DATA = reasoning_gym_data.Arguments(tasks=TASKS, train=10, val=10, warm=110, prompt="none")
SMALL = Recipe(
    held_out=32, batch=16, learning_rate=5e-3, target=0.02, lowest=0.0, highest=1.0, check_every=5, max_new_tokens=6
)


@pytest.fixture(scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model.build_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> tuple[Path, Path]:
    """A new model and the data."""
    base = tmp_path_factory.mktemp("warm")
    model = tiny_model.build_model(tokenizer, tiny_qwen3.Recipe(layers=1, hidden=32, heads=2))
    model_folder.save(base / "model", model, tokenizer, {"kind": "test"})
    reasoning_gym_data.prepare(base / "data", DATA)
    return base / "model", base / "data"


def start(folders, tokenizer, recipe: Recipe = SMALL) -> WarmStart:
    model, data = folders
    torch.manual_seed(0)
    network = warm_start.AutoModelForCausalLM.from_pretrained(model)
    return WarmStart(network, tokenizer, warm_start.read_examples(data / "warm.parquet", tokenizer), recipe)


def test_targets_are_the_solution_and_its_end(tokenizer):
    ids, mask, targets = warm_start.encode_batch([Example([5, 6, 7], [8, 9], {}), Example([5], [9], {})], pad=0)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [5, 9, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert targets.tolist() == [[NO_TARGET, NO_TARGET, 8, 9, NO_TARGET], [9, *[NO_TARGET] * 4]]


def test_examples_end_with_the_end_of_the_turn(folders, tokenizer):
    examples = warm_start.read_examples(folders[1] / "warm.parquet", tokenizer)
    assert len(examples) == 110
    for example in examples:
        assert example.solution[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(example.solution[:-1])
        assert warm_start.is_right(example, text) and not warm_start.is_right(example, text + "9")


def test_measure_is_right_by_hand():
    found = warm_start.measure([[True, False], [False, False], [True, True], [False, True]])
    assert found["accuracy"] == 0.5 and found["pass@2"] == 0.75
    assert found["standard_error"] == pytest.approx((1 / 6) ** 0.5 / 2)  # means 0.5, 0, 1, 0.5


def test_every_row_is_used_before_one_comes_again(folders, tokenizer):
    warm = start(folders, tokenizer, replace(SMALL, batch=39))
    seen = [id(example) for _ in range(2) for example in warm._next_batch()]
    assert len(seen) == len(set(seen)) == len(warm.train) == 78
    assert not {id(example) for example in warm.held_out} & set(seen)


def test_updates_learn_and_the_same_seed_repeats_them(folders, tokenizer, one_thread):
    losses = [[warm.update() for _ in range(8)] for warm in (start(folders, tokenizer) for _ in range(2))]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.5


def test_bfloat16_computes_with_the_weights_of_the_last_update(folders, tokenizer, one_thread):
    exact, rounded = (start(folders, tokenizer, replace(SMALL, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    losses = [[warm.update() for _ in range(8)] for warm in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    assert {weight.dtype for weight in rounded.model.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="--dtype half: give one of float32, bfloat16"):
        start(folders, tokenizer, replace(SMALL, dtype="half"))


def test_the_whole_start_is_kept_and_reused(folders, tmp_path, one_thread):
    model, data = folders
    said: list[str] = []
    out = tmp_path / "out"
    assert warm_start.prepare(model, data, out, SMALL, said.append)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["accuracy"] <= manifest["pass@8"] <= 1
    assert manifest["steps"] % SMALL.check_every == 0 and manifest["steps"] > 0 and manifest["tokens"] > 0
    assert manifest["arguments"]["target"] == SMALL.target
    assert said[-1].startswith(f"{out}: sampled accuracy {manifest['accuracy']:.3f} +- ")
    before, after = (warm_start.AutoModelForCausalLM.from_pretrained(folder) for folder in (model, out))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert not warm_start.prepare(model, data, out, SMALL, said.append)  # found done
    with pytest.raises(WarmStartError):  # another recipe starts anew, and what is there stays when it fails
        warm_start.prepare(model, data, out, replace(SMALL, seed=1, target=0.99, max_steps=0), said.append)
    assert json.loads((out / "manifest.json").read_text()) == manifest


def test_an_accuracy_that_is_not_reached_or_passed_saves_nothing(folders, tmp_path, one_thread):
    with pytest.raises(WarmStartError, match="after 5 steps of the warm start, wanted 0.9: easier tasks"):
        warm_start.prepare(*folders, tmp_path / "out", replace(SMALL, target=0.9, max_steps=5), lambda _: None)
    with pytest.raises(WarmStartError, match=r"wanted 0.9 to 1: set --target"):
        warm_start.prepare(
            *folders, tmp_path / "out", replace(SMALL, target=0.0, lowest=0.9, highest=1), lambda _: None
        )
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(folders, tokenizer, tmp_path):
    model, data = folders
    with pytest.raises(FileNotFoundError, match="warm.parquet does not exist: write it with"):
        warm_start.prepare(model, tmp_path, tmp_path / "out", SMALL)
    with pytest.raises(FileNotFoundError, match="has no weights"):
        warm_start.prepare(data, data, tmp_path / "out", SMALL)
    with pytest.raises(FileExistsError, match="files that are not of this command"):
        warm_start.prepare(model, data, model, SMALL)
    with pytest.raises(ValueError, match="warm has 110 rows: the warm start needs 112 or more"):
        start(folders, tokenizer, replace(SMALL, held_out=56))
    none = reasoning_gym_data.Arguments(tasks="graph_color", train=1, val=1, warm=2, prompt="none")
    reasoning_gym_data.prepare(tmp_path / "none", none)
    with pytest.raises(ValueError, match="rg_graph_color in .* has no worked answer"):
        warm_start.read_examples(tmp_path / "none/warm.parquet", tokenizer)


def test_the_command_line_has_every_setting(capsys):
    with pytest.raises(SystemExit):
        warm_start.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in asdict(SMALL))
