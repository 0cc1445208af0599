"""From names to models that vLLM loads: found, merged, tokenised, refused; the shards are those of two FSDP ranks."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cppo_verl.cli.main import main
from cppo_verl.evaluation import EvaluationError, checkpoint, engine, evaluate, settings
from data_prep.tiny_model import build_tokenizer
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


def layout(run: Path, model: Path) -> Path:
    """The actor folder of a run's checkpoint as verl leaves it, without shards."""
    actor = run / "checkpoints/global_step_7/actor"
    (actor / "huggingface").mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (actor / "huggingface" / file.name).write_bytes(file.read_bytes())
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    (run / "checkpoints" / checkpoint.POINTER).write_text("7")
    return actor


def test_every_name_of_a_checkpoint_finds_it_and_its_fingerprint_follows_the_content(model, tmp_path):
    actor = layout(tmp_path, model)
    shard = actor / "model_world_size_2_rank_1.pt"
    shard.write_bytes(bytes(3 << 20))
    for name in (tmp_path, tmp_path / "checkpoints", actor.parent, actor):
        source = checkpoint.locate(str(name))
        assert (source.name, source.actor, source.run_dir) == ("global_step_7", actor, tmp_path)
    plain = checkpoint.locate(str(model))
    assert (plain.folder, plain.actor, plain.run_dir) == (model, None, None)
    assert evaluate.default_out(source) == tmp_path / "eval/global_step_7"
    assert evaluate.default_out(plain) == Path.cwd() / "eval" / model.name
    before = source.fingerprint()
    assert before == checkpoint.locate(str(tmp_path)).fingerprint() != plain.fingerprint()
    shard.write_bytes(bytes((3 << 20) - 1) + b"x")  # of the same size
    assert source.fingerprint() != before


@pytest.mark.stack
def test_two_shards_merge_to_the_weights_they_were_cut_from(model, tmp_path):
    actor, original = layout(tmp_path, model), load_file(model / "model.safetensors")
    ranks = [FORK.Process(target=write_shard, args=(rank, actor, model)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 0
    source = checkpoint.locate(str(tmp_path))
    for dtype in ("float32", "bfloat16"):
        merged = checkpoint.prepare(source, tmp_path, dtype) / "model.safetensors"
        weights = load_file(merged)
        assert weights.keys() == original.keys()
        assert all(torch.equal(weights[key], x.to(getattr(torch, dtype))) for key, x in original.items())
        before = merged.stat().st_mtime_ns
        assert checkpoint.prepare(source, tmp_path, dtype) == merged.parent and merged.stat().st_mtime_ns == before
    (actor / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(EvaluationError, match=r"merging .* failed[\s\S]*model_world_size_2_rank_1.pt"):
        checkpoint.prepare(source, tmp_path / "out", "float32")
    assert not (tmp_path / "out/merged-float32").exists()


def test_names_of_nothing(model, tmp_path, monkeypatch, capsys):
    (layout(tmp_path / "megatron", model) / "huggingface/config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    for name, said in (
        ("", "neither a run .* nor a Hugging Face model"),
        ("config.json", "neither a run"),
        ("megatron", "Megatron checkpoint has to be merged first"),
    ):
        with pytest.raises(EvaluationError, match=said):
            checkpoint.locate(str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/nothing", "/no/such/folder"):
        assert main(["eval", name]) == 1
        assert f"model {name} is neither a folder here nor reachable on the hub" in capsys.readouterr().err


def test_ids_are_the_chat_templates_and_seeds_follow_from_seed_and_row(model):
    assert len({engine._seed(seed, row) for seed in range(4) for row in range(500)}) == 2000
    asked = problem(question="3+4=?")
    found = engine.tokenise([asked], model, settings.Sampling(), False)
    rendered = found.tokenizer.apply_chat_template(asked.messages, add_generation_prompt=True, tokenize=False)
    assert found.tokenizer.decode(found.ids[0]) == rendered
    assert found.max_model_len == 64
    with pytest.raises(EvaluationError, match=r"a.parquet, row 6: the prompt has \d+ tokens, the model takes 64"):
        engine.tokenise([asked, problem(5, question="1" * 80)], model, settings.Sampling(), False)
