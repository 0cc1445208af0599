"""Memory and time on paper, against real models where one fits here, and against pencil and paper."""

import dataclasses

import pytest
import torch

from recipe import hours, memory, settings
from recipe.memory import GB
from recipe.settings import Settings
from recipe.shapes import SHAPES, Shape, shape_of
from tests.recipe.test_recipes import MODELS, overrides_of, script

TOY = Shape(hidden=8, layers=2, heads=2, kv_heads=1, inner=16, tied=True, head_dim=4, vocabulary=100)
RUN = Settings(prompts=8, n=4, minibatch=4, prompt_tokens=10, response_tokens=90, steps=100, test_freq=10, val_n=2,
               nodes=2, gpus_per_node=4, sequence_parallel=2, tokens_per_gpu=50, tensor_parallel=2, gpu_share=0.5,
               param_offload=False, optimizer_offload=False, offload_policy=False, checkpointing=True)  # fmt: skip
NEAR = {"qwen3_1p7b": 0.05, "qwen3_8b_base": 0.05, "qwen3_30b_a3b_base": 0.15}


def hf_config(shape: Shape, **changes):
    import transformers

    common = {
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }  # fmt: skip
    if not shape.experts:
        return transformers.Qwen3Config(**common, intermediate_size=shape.inner, **changes)
    common |= {"num_experts": shape.experts, "num_experts_per_tok": shape.chosen, "moe_intermediate_size": shape.inner}
    return transformers.Qwen3MoeConfig(**common, **changes)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_transformers(name, tmp_path):
    import transformers

    shape, config = SHAPES[name], hf_config(SHAPES[name])
    config.save_pretrained(tmp_path)
    assert shape_of("whatever", str(tmp_path)) == shape == shape_of(name, "Qwen/of a hub")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert sum(p.numel() for p in model.model.layers[0].parameters()) == shape.layer


def test_experts_that_a_token_does_not_visit_are_not_active():
    """30.5B with 3.3B active, as the model's name says, when the embedding counts."""
    moe = SHAPES["qwen3_30b_a3b_base"]
    assert round((moe.active + moe.embedding) / 1e9, 1) == 3.4


@pytest.mark.parametrize(("name", "within"), NEAR.items())
def test_activations_of_a_layer_are_what_autograd_keeps(name, within):
    """One real decoder layer in bf16 on 64 tokens, narrowed eight times."""
    import transformers

    full = SHAPES[name]
    narrow = {field: max(getattr(full, field) // 8, 1) for field in ("hidden", "heads", "kv_heads", "inner")}
    shape = dataclasses.replace(full, **narrow, layers=1, vocabulary=64, experts=full.experts // 8)
    config = hf_config(shape, attn_implementation="sdpa")
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    layer, tokens = model.model.layers[0], 64
    hidden = torch.randn(1, tokens, shape.hidden, dtype=torch.bfloat16, requires_grad=True)
    where = model.model.rotary_emb(hidden, torch.arange(tokens).unsqueeze(0))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(hidden, position_embeddings=where, attention_mask=None)
    assert memory.saved(shape) * tokens == pytest.approx(sum(kept.values()), rel=within)


def test_memory_by_hand():
    # query 8, key_value 4: attention 2*8*8 + 2*8*4 + 2*4 = 200, norms 16, MLP 3*8*16 = 384
    assert TOY.layer == 200 + 16 + 384 == 600
    assert TOY.parameters == 2 * 600 + 800 + 8 == 2008
    need = memory.estimate(TOY, RUN, gpu_bytes=20 * GB)
    assert need.training["parameters"] == need.training["gradients"] == 4 * 2008 / 8
    assert need.training["Adam"] == 8 * 2008 / 8
    assert need.training["gathered layers and their gradients"] == 10 * 600 + 8 * 800
    assert need.training["activations: checkpoints"] == 2 * 2 * 8 * 50
    assert need.training["logits"] == 50 * 100 * 6
    assert need.rollout["vLLM: weights"] == 2008
    assert need.rollout["vLLM: KV cache"] == 20 * GB * 0.5 - 2008 - 3 * GB
    # a token's keys and values: 2 layers * 2 * 4 * 2 bytes
    assert TOY.cache_bytes == 32
    assert need.cache_tokens == int((7 * GB - 2008) * 2 / 32)
    assert need.host == 0
    rest = memory.estimate(TOY, dataclasses.replace(RUN, param_offload=True, optimizer_offload=True))
    assert rest.rollout["parameters"] == rest.rollout["Adam"] == 0
    assert rest.training["Adam"] > 0
    assert rest.host == 12 * 2008 / 2
    away = memory.estimate(TOY, dataclasses.replace(RUN, offload_policy=True))
    assert sum(away.training[part] for part in ("parameters", "gradients", "Adam")) == 0
    assert away.host == 16 * 2008 / 2


@pytest.mark.parametrize(("model", "nodes"), [*((model, "1") for model in MODELS), ("qwen3_30b_a3b_base", "2")])
def test_the_recipes_fit_80_gb(model, nodes):
    read = settings.read(settings.parse(overrides_of(model, NNODES=nodes)))
    need = memory.estimate(SHAPES[model], read)
    assert need.peak < 80 * GB
    # every replica holds some sequences of full length, and a micro-batch at least one
    assert need.cache_tokens >= 16 * read.longest
    assert read.tokens_per_gpu * read.sequence_parallel >= read.longest


def test_a_plan_reads_its_overrides(bare_python):
    with pytest.raises(ValueError, match="data.train_batch_size, which no override sets"):
        settings.read({})
    given = ["a.b=1", "+c=[x,y]", "a.b='2'", "d=-3e-1", "e=True"]
    assert settings.parse(given) == {"a.b": "2", "c": "[x,y]", "d": -0.3, "e": True}
    done = script("qwen3_30b_a3b_base", "plan", OFFLOAD="none", GPU_MEMORY_GB="40", PYTHON=bare_python)
    assert "DOES NOT FIT" in done.stdout and "(of 40)" in done.stdout
    with pytest.raises(ValueError, match="qwen3_8b_base"):
        shape_of("qwen3_4b", "Qwen/Qwen3-4B")


def test_time_by_hand():
    # active parameters: 2 layers of 600 (dense, without norms' exception) and the LM head
    assert TOY.active == 2 * 600 + 800
    # forward of a token in a sequence of 45: 2 * 2000 + 2 * 2 layers * 8 * 45 = 5440, times 4 with checkpointing
    assert hours.training_flops(TOY, 45, True) == 4 * (4000 + 1440)
    a = hours.Assumptions(flops=100, utilization=0.5, bandwidth=1000, bandwidth_share=0.5, overhead=7)
    need = dataclasses.replace(memory.estimate(TOY, RUN), cache_tokens=200)
    h = hours.estimate(TOY, RUN, need, a)
    # 32 responses of 45 + 5 tokens on 8 GPUs at 50 FLOP/s
    assert h.update == pytest.approx(32 * 50 * 4 * 5440 / (8 * 50))
    # 4 replicas with 8 responses each; 200 tokens of cache hold 4 of 50; a batch reads 2*2008 + 4 * 27.5 * 32 bytes
    # at 500 * 2 bytes/s; 8/4 rounds of 45 tokens, then 45 tokens alone at 2 * 2000 bytes
    assert h.generation == pytest.approx(2 * 45 * (4016 + 4 * 27.5 * 32) / 1000 + 45 * 4000 / 1000)
    assert h.step == pytest.approx(h.generation + h.update + 7 + h.validation / 10)
    assert h.gpu_hours == pytest.approx(h.step * 100 / 3600 * 8)
    # AdamW on the host takes its time: 2 updates, 28 bytes for each of half the parameters
    away = dataclasses.replace(RUN, offload_policy=True)
    a = hours.Assumptions(overhead=0, host_bandwidth=1000)
    assert hours.estimate(TOY, away, memory.estimate(TOY, away), a).overhead == pytest.approx(2 * 28 * 1004 / 1000)
