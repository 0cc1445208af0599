"""What paper refuses: a run that is well says nothing, and each thing that is wrong is one sentence with a remedy."""

import json

import pytest

from cppo_verl.launch import sizes
from cppo_verl.launch.sizes import Heads

RUN = {
    "PROMPTS": 64, "MINIBATCH": 32, "N": 8, "PROMPT_TOKENS": 1024, "RESPONSE_TOKENS": 8192, "NODES": 1, "GPUS": 8,
    "SP": 2, "OLD_SP": 1, "TP": 2, "BUDGET": 4608, "DYNAMIC": True, "STRATEGY": "fsdp2", "PACKED": True,
    "ATTENTION": None, "OWN_NODES": 0, "OWN_GPUS": 8,
}  # fmt: skip
HEADS = Heads(query=16, key_value=8)


def said(heads: Heads | None = HEADS, without: str = "", **changes) -> str:
    """All sentences about ``RUN`` with the named constants of ``sizes`` changed."""
    values = {getattr(sizes, name): value for name, value in {**RUN, **changes}.items() if name != without}
    return "\n".join(sizes.problems(values, heads))


@pytest.mark.parametrize("value", [0, 1.5, True, "many"])
def test_counts(value):
    for name in ("PROMPTS", "GPUS", "BUDGET", "RESPONSE_TOKENS"):
        assert said(**{name: value}) == f"{getattr(sizes, name)}={value!r} must be a whole number of at least 1."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SP": 4, "NODES": 3, "GPUS": 2}, [f"{sizes.SP}=4 does not divide the 6 GPUs", "a divisor of 6."]),
        ({"OLD_SP": 16, "NODES": 1}, [f"{sizes.OLD_SP}=16 does not divide"]),  # verl lets the old key win
        ({"TP": 3, "heads": None}, [f"{sizes.TP}=3 does not divide the 8 GPUs", "a divisor of 8."]),
        ({"SP": 8, "heads": Heads(12, 4)}, [f"{sizes.SP}=8 with a model of 12 attention heads", "one of 1, 2, 4, 12."]),
        ({"TP": 8, "heads": Heads(24, 6)}, [f"{sizes.TP}=8 with a model of 24 attention heads and 6 key-value heads"]),
        ({"MINIBATCH": 1, "N": 2}, ["is 2 responses", "over 4 data-parallel ranks", "multiple of 4."]),
        ({"BUDGET": 4607}, [f"{sizes.BUDGET}=4607 x {sizes.SP}=2", "= 9216 tokens", "to 4608 or more."]),
        ({"PACKED": False}, [f"{sizes.SP}=2 with {sizes.PACKED}=False", f"set {sizes.PACKED}=True."]),
        ({"ATTENTION": "sdpa"}, [f"{sizes.SP}=2 with {sizes.ATTENTION}=sdpa", "docs/gpu.md", f"or {sizes.SP}=1."]),
        ({"OWN_NODES": 1, "OWN_GPUS": 3}, ["does not divide the 3 GPUs of " + sizes.OWN_NODES]),
    ],
)
def test_each_problem_is_one_sentence(changes, words):
    sentence = said(**changes)
    assert "\n" not in sentence and all(word in sentence for word in words)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"SP": 16, "NODES": 2, "heads": Heads(32, 4)},  # key-value heads are repeated
        {"TP": 16, "NODES": 2, "GPUS": 8},  # a vLLM engine over two nodes
        {"BUDGET": 100, "DYNAMIC": False},
        {"SP": 1, "BUDGET": 9216, "ATTENTION": "sdpa", "PACKED": False},
        {"ATTENTION": "kernels-community/flash-attn2"},
        {"STRATEGY": "megatron", "SP": 3, "ATTENTION": "sdpa", "MINIBATCH": 1},  # these are FSDP's
        {"OWN_NODES": 1, "OWN_GPUS": 2, "GPUS": 6, "MINIBATCH": 48},  # vLLM on GPUs of its own
        *({"without": key} for key in RUN if key != "SP"),  # which is 1 then; what is missing is not guessed
    ],
)
def test_what_runs_is_not_refused(changes):
    assert said(**changes) == ""


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ('{"num_attention_heads": 16, "num_key_value_heads": 8}', Heads(16, 8)),
        ('{"num_attention_heads": 16}', Heads(16, 16)),
        (json.dumps({"text_config": {"num_attention_heads": 4, "num_key_value_heads": 2}}), Heads(4, 2)),
        *((text, None) for text in ('{"hidden_size": 8}', "{")),
    ],
)
def test_heads_are_read_from_config_json(tmp_path, config, heads):
    path = tmp_path / "config.json"
    assert sizes.heads_of(path) is None
    path.write_text(config)
    assert sizes.heads_of(path) == heads
