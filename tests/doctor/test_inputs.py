"""A model that is whole or not, and recipes as their scripts and the run's own checks see them."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from cppo_verl.doctor import inputs
from cppo_verl.doctor.verdicts import Asked, Trouble
from tests import ROOT

WEIGHTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """As much of a model as is looked at: two weight files under an index."""
    index = {"weight_map": {"embed": WEIGHTS[0], "head": WEIGHTS[1], "norm": WEIGHTS[1]}}
    for name, text in {"config.json": {}, "tokenizer.json": {}, "model.safetensors.index.json": index}.items():
        (tmp_path / name).write_text(json.dumps(text))
    for name in WEIGHTS:
        (tmp_path / name).write_bytes(bytes(1000))
    return tmp_path


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ([], None),
        (["model.safetensors.index.json"], None),
        (["config.json"], "has no config.json"),
        (["tokenizer.json"], "has no tokenizer"),
        ([WEIGHTS[1]], "lacks 1 of 2 weight files, such as model-00002"),
        (["model.safetensors.index.json", *WEIGHTS], "has no weights"),
    ],
)
def test_a_model_is_whole_or_not(folder, missing, words):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(Trouble, match=words) if words else nullcontext():
        assert inputs.model(Asked(model=str(folder))).endswith("0.0 GB of weights, whole")


def test_a_model_from_the_hub(folder, tmp_path_factory, monkeypatch):
    import huggingface_hub.constants

    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    with pytest.raises(Trouble, match="owner/tiny is not downloaded, and the hub did not give it"):
        inputs.model(Asked(model="owner/tiny"))  # HF_HUB_OFFLINE, or no network
    snapshots = cache / "models--owner--tiny/snapshots/abc"
    snapshots.parent.mkdir(parents=True)
    snapshots.symlink_to(folder)
    (cache / "models--owner--tiny/refs").mkdir()
    (cache / "models--owner--tiny/refs/main").write_text("abc")
    assert "owner/tiny, downloaded: " in inputs.model(Asked(model="owner/tiny"))
    with pytest.raises(Trouble, match="no such folder, and no hub id"):
        inputs.model(Asked(model="./tiny"))


def test_a_recipe_is_what_its_script_says(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for name in ("SP", "TP", "ATTN", "METHOD", "RUN", "DATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("train", "aime24", "aime25", "aime26"):
        (tmp_path / f"{name}.parquet").touch()
    monkeypatch.setenv("DATA", str(tmp_path))
    monkeypatch.setenv("WORK", str(tmp_path))
    asked = inputs.ask(None, "qwen3_8b_base")
    assert (asked.model, asked.checkpoint_bytes) == ("Qwen/Qwen3-8B-Base", 12 * 8_190_735_360)
    assert asked.run_dir == tmp_path / "qwen3_8b_base/cppo-seed0"
    assert "1 x 8 GPUs; all that a run checks of its config holds" in inputs.recipe(asked)

    monkeypatch.setenv("SP", "3")
    (tmp_path / "aime25.parquet").unlink()
    with pytest.raises(Trouble) as refusal:
        inputs.recipe(inputs.ask(None, "run_scripts/qwen3_8b_base.sh"))
    assert "ulysses_sequence_parallel_size=3 does not divide the 8 GPUs" in str(refusal.value)
    assert f"no data at {tmp_path}/aime25.parquet" in str(refusal.value)
    with pytest.raises(Trouble, match="no such recipe; there are: qwen3_1p7b, qwen3_1p7b_base, qwen3_30b"):
        inputs.recipe(inputs.ask(None, "qwen3_4b"))
    monkeypatch.setenv("METHOD", "ppo")
    with pytest.raises(Trouble, match="METHOD='ppo' is not one of"):
        inputs.recipe(inputs.ask(None, "qwen3_8b_base"))


def test_a_model_says_what_its_checkpoints_take(folder):
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"intermediate_size": 16, "head_dim": 4, "vocab_size": 100, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(shape))
    assert inputs.ask(str(folder), None).checkpoint_bytes == 12 * 2008  # by hand in tests/recipe/test_estimates.py
    assert inputs.ask("owner/other", None).checkpoint_bytes is None
