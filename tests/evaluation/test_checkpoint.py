"""From names to models that vLLM loads: found, merged, tokenised, refused; the shards are those of two FSDP ranks."""

import json
import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cppo_verl.cli.main import main
from cppo_verl.evaluation import EvaluationError, checkpoint, engine, evaluate, settings
from data_prep.tiny_qwen3 import build_tokenizer
from tests.evaluation.data import problem

FORK = multiprocessing.get_context("fork")


def write_shard(rank: int, actor: Path, model: Path) -> None:
    """One of two FSDP2 ranks that save ``model``; in a process of its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    torch.distributed.init_process_group("gloo", f"file://{actor}/store", rank=rank, world_size=2)
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    fully_shard(whole, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",)))
    torch.save(whole.state_dict(), actor / f"model_world_size_2_rank_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny Qwen3 with random float32 weights and an odd vocabulary, so that two shards differ in size."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    assert len(tokenizer) % 2
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **sizes, **heads)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, model) -> Path:
    """A run directory whose checkpoint two FSDP2 ranks wrote, in verl's layout."""
    run = tmp_path_factory.mktemp("run")
    actor = run / "checkpoints/global_step_7/actor"
    (actor / "huggingface").mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (actor / "huggingface" / file.name).write_bytes(file.read_bytes())
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    (run / "checkpoints/latest_checkpointed_iteration.txt").write_text("7")
    ranks = [FORK.Process(target=write_shard, args=(rank, actor, model)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 0
    (actor / "store").unlink(missing_ok=True)
    return run


def test_every_name_of_a_checkpoint_finds_it(run_dir, model):
    step = run_dir / "checkpoints/global_step_7"
    for name in (run_dir, run_dir / "checkpoints", step, step / "actor"):
        source = checkpoint.locate(str(name))
        assert (source.name, source.actor, source.run_dir) == ("global_step_7", step / "actor", run_dir)
    plain = checkpoint.locate(str(model))
    assert (plain.folder, plain.actor, plain.run_dir) == (model, None, None)
    assert evaluate.default_out(source) == run_dir / "eval/global_step_7"
    assert evaluate.default_out(plain) == Path.cwd() / "eval" / model.name


@pytest.mark.stack
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_shards_merge_to_the_weights_they_were_cut_from(run_dir, model, tmp_path, dtype):
    source = checkpoint.locate(str(run_dir))
    merged = checkpoint.prepare(source, tmp_path, dtype)
    weights, original = load_file(merged / "model.safetensors"), load_file(model / "model.safetensors")
    assert weights.keys() == original.keys()
    for key, tensor in original.items():
        assert torch.equal(weights[key], tensor.to(getattr(torch, dtype)))
    assert json.loads((merged / "config.json").read_text())["dtype"] == dtype
    before = (merged / "model.safetensors").stat().st_mtime_ns
    assert checkpoint.prepare(source, tmp_path, dtype) == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == before


def test_the_fingerprint_follows_the_content(run_dir, tmp_path):
    copy = tmp_path / "run/global_step_1"
    shutil.copytree(run_dir / "checkpoints/global_step_7", copy)
    source = checkpoint.locate(str(copy))
    before = source.fingerprint()
    assert before == checkpoint.locate(str(run_dir)).fingerprint()
    shard = copy / "actor/model_world_size_2_rank_1.pt"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")  # of the same size
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda actor: [p.unlink() for p in actor.glob("model_*")], "has no shards"),
        (lambda actor: (actor / "model_world_size_2_rank_1.pt").unlink(), "lacks the shards of rank 1 of 2"),
        (lambda actor: (actor / "fsdp_config.json").unlink(), "has no fsdp_config.json"),
        (lambda actor: (actor / "huggingface/config.json").unlink(), "Megatron checkpoint has to be merged first"),
    ],
)
def test_damaged_checkpoints(run_dir, tmp_path, damage, said):
    step = tmp_path / "global_step_7"
    shutil.copytree(run_dir / "checkpoints/global_step_7", step)
    damage(step / "actor")
    with pytest.raises(EvaluationError, match=said):
        checkpoint.locate(str(step))


def test_names_of_nothing(tmp_path, monkeypatch, capsys):
    for made, name, said in (
        ({}, "none", "does not exist: give a folder, or a hub id"),
        ({}, "", "neither a run .* nor a Hugging Face model"),
        ({"config.json": "{}"}, "", "no weights"),
        ({}, "config.json", "is a file"),
        ({checkpoint.LATEST: "40"}, "", "names step '40'"),
    ):
        for file, text in made.items():
            (tmp_path / file).write_text(text)
        with pytest.raises(EvaluationError, match=said):
            checkpoint.locate(str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["eval", "nobody/nothing"]) == 1
    assert "model nobody/nothing is neither a folder here nor reachable on the hub" in capsys.readouterr().err


@pytest.mark.stack
def test_a_merger_that_fails_says_why_and_leaves_no_model(run_dir, tmp_path):
    step = tmp_path / "global_step_7"
    shutil.copytree(run_dir / "checkpoints/global_step_7", step)
    (step / "actor/model_world_size_2_rank_1.pt").write_bytes(b"torn")
    with pytest.raises(EvaluationError, match="merging .* failed"):
        checkpoint.prepare(checkpoint.locate(str(step)), tmp_path / "out", "float32")
    assert not (tmp_path / "out/merged-float32").exists()


def test_ids_are_the_chat_templates_and_seeds_follow_from_seed_and_row(model):
    assert len({engine._seed(seed, row) for seed in range(4) for row in range(500)}) == 2000
    asked = problem(question="3+4=?")
    found = engine.tokenise([asked], model, settings.Sampling(), False)
    rendered = found.tokenizer.apply_chat_template(asked.messages, add_generation_prompt=True, tokenize=False)
    assert found.tokenizer.decode(found.ids[0]) == rendered
    assert found.max_model_len == 64
    with pytest.raises(EvaluationError, match=r"a.parquet, row 6: the prompt has \d+ tokens, the model takes 64"):
        engine.tokenise([asked, problem(5, question="1" * 80)], model, settings.Sampling(), False)


def test_the_engines_options_reach_vllm_and_its_refusal_is_a_sentence(model):
    prompts = engine.Prompts({0: [1, 2, 3]}, 64, SimpleNamespace())
    options = engine.EngineOptions(extra={"no_such_argument": 1})
    with pytest.raises(EvaluationError, match="vLLM could not load .*no_such_argument"):
        engine.start(model, prompts, settings.Sampling(), options)
