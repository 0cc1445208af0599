"""The supervised start, with a real model small enough to learn sums of single digits in seconds."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("reasoning_gym", reason="pip install 'cppo_verl[real]'")

from data_prep import reasoning_gym_data, storage, supervised, tiny_model, tiny_qwen3, warm_start  # noqa: E402
from data_prep.supervised import NO_TARGET, Example, Trainer  # noqa: E402
from data_prep.warm_start import DTYPES, Recipe  # noqa: E402

TASKS = "chain_sum(min_terms=2, max_terms=2, max_digits=1)"  # 162 questions; answers -8..18
DATA = reasoning_gym_data.Arguments(tasks=TASKS, train=10, val=10, warm=110, prompt="none")
SMALL = Recipe(
    held_out=16, batch=16, learning_rate=5e-3, target=0.02, lowest=0.0, highest=1.0, check_every=5, max_new_tokens=6
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> tuple[Path, Path]:
    """A new model and the data."""
    base = tmp_path_factory.mktemp("warm")
    model = tiny_model.build_model(tokenizer, tiny_qwen3.Recipe(layers=1, hidden=32, heads=2))
    storage.make_model(base / "model", "test", {}, lambda: (model, tokenizer, {}))
    reasoning_gym_data.prepare(base / "data", DATA)
    return base / "model", base / "data"


def test_targets_are_the_solution_and_its_end():
    ids, targets = supervised.encode_batch([Example([5, 6, 7], [8, 9], {}), Example([5], [9], {})], pad=0)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [5, 9, 0, 0, 0]]
    assert targets.tolist() == [[NO_TARGET, NO_TARGET, 8, 9, NO_TARGET], [9, *[NO_TARGET] * 4]]


def test_examples_end_with_the_end_of_the_turn(folders, tokenizer):
    examples = warm_start.read_examples(folders[1] / "warm.parquet", tokenizer)
    assert len(examples) == 110
    for example in examples[:20]:
        assert example.solution[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(example.solution[:-1])
        assert warm_start.is_right(example.row, text) and not warm_start.is_right(example.row, text + "9")


def test_measure_is_right_by_hand():
    found = supervised.measure([[True, False], [False, False], [True, True], [False, True]])
    assert found["accuracy"] == 0.5 and found["pass@2"] == 0.75
    assert found["standard_error"] == pytest.approx((1 / 6) ** 0.5 / 2)  # means 0.5, 0, 1, 0.5


def test_every_row_is_used_before_one_comes_again():
    drawn = warm_start.batches([Example([i], [i], {}) for i in range(78)], 39, random.Random(0))
    assert sorted(e.prompt[0] for _ in range(2) for e in next(drawn)) == list(range(78))


def test_updates_learn_the_same_seed_repeats_them_and_bfloat16_keeps_float32_weights(folders, tokenizer):
    def losses(dtype: str) -> tuple[list[float], set[torch.dtype]]:
        examples = warm_start.read_examples(folders[1] / "warm.parquet", tokenizer)
        network = warm_start.AutoModelForCausalLM.from_pretrained(folders[0])
        trainer = Trainer(network, tokenizer, [], warm_start.is_right, 6, DTYPES[dtype], fused=True)
        batches = warm_start.batches(examples[32:], 16, random.Random(0))
        found = [trainer.update(next(batches), 5e-3) for _ in range(6)]
        return found, {weight.dtype for weight in network.parameters()}

    first, again, rounded = losses("float32"), losses("float32"), losses("bfloat16")
    assert first == again and first[0][-1] < first[0][0] - 0.3
    assert rounded[0] == pytest.approx(first[0], rel=0.02) and rounded[0] != first[0]
    assert rounded[1] == {torch.float32}


def test_the_whole_start_is_kept_and_reused(folders, tmp_path, capsys):
    out = tmp_path / "out"
    assert warm_start.prepare(*folders, out, SMALL)
    manifest = storage.read_manifest(out)
    assert manifest["accuracy"] <= manifest["pass@8"] <= 1 and manifest["arguments"]["target"] == SMALL.target
    assert manifest["steps"] % SMALL.check_every == 0 and manifest["steps"] > 0 and manifest["tokens"] > 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("before the warm start") and f"accuracy {round(manifest['accuracy'], 3)}, " in said[-1]
    assert storage.sha256_of(out / "model.safetensors") != storage.sha256_of(folders[0] / "model.safetensors")
    assert not warm_start.prepare(*folders, out, SMALL)  # found done


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": 0.9, "max_steps": 5}, "after 5 steps of the warm start is not what was wanted"),
        ({"target": 0.0, "lowest": 0.9}, "wanted 0.9 to 1.0: .*--target"),
        ({"dtype": "float16"}, "dtype = float16: give float32 or bfloat16"),
    ],
)
def test_an_accuracy_that_is_not_reached_or_passed_or_another_dtype_saves_nothing(folders, tmp_path, changes, words):
    with pytest.raises((RuntimeError, ValueError), match=words):
        warm_start.prepare(*folders, tmp_path / "out", replace(SMALL, **changes))
    assert not (tmp_path / "out").exists()


def test_a_task_without_worked_answers_is_named(tokenizer, tmp_path):
    none = reasoning_gym_data.Arguments(tasks="graph_color", train=1, val=0, warm=2, prompt="none")
    reasoning_gym_data.prepare(tmp_path, none)
    with pytest.raises(ValueError, match="rg_graph_color in .* has no worked answer"):
        warm_start.read_examples(tmp_path / "warm.parquet", tokenizer)
