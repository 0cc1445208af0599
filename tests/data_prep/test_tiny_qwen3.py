"""The tiny model: tokenizer, the errors it is taught, and a real warm start of a few steps."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep import arithmetic, storage, supervised, tiny_model, tiny_qwen3
from data_prep.arithmetic import Arguments, partial_results
from data_prep.tiny_qwen3 import Recipe
from tests import ROOT

# Any accuracy is high enough: what a run of the quickstart lands at is measured by tests/e2e.
DATA = Arguments(train=100, val=5)
SHORT = Recipe(
    layers=1, hidden=32, heads=2, held_out=32, computing_max_steps=4, computing_check_every=2, computing_accuracy=0.0,
    careless_max_steps=2, careless_check_every=1, careless_accuracy=1.0, lowest=0.0, highest=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    arithmetic.prepare(folder, DATA)
    return folder


def test_characters_and_roles_are_tokens_and_a_prompt_ends_where_the_assistant_starts(tokenizer):
    text = "the user's assistant is a system;\n" + "".join(map(chr, range(32, 127)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("12-user\né") == ["1", "2", "-", "user", "\n", "<unk>"]
    messages = arithmetic.chat_prompt("1+2")
    example = supervised.encode(tokenizer, messages, "1+2=3", "1+2")
    text = "<|im_start|>user\n1+2=?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.prompt) == text and len(example.prompt) == 13
    assert tokenizer.decode(example.solution) == "1+2=3<|im_end|>" and tokenizer.eos_token == "<|im_end|>"


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


def test_a_warm_start_is_what_the_loaders_expect_and_is_made_once(data: Path, tmp_path: Path, capsys):
    out = tmp_path / "models/tiny"
    assert tiny_qwen3.prepare(data, out, SHORT)
    manifest = storage.read_manifest(out)
    assert manifest["steps"] == 3 and 0 <= manifest["sampled_accuracy"] <= 1
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{out}: seed 0, steps 3, ")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == "Qwen3ForCausalLM" and model.dtype == torch.float32
    assert tokenizer.get_vocab() == tiny_model.build_tokenizer().get_vocab()
    assert tokenizer.chat_template == tiny_model.CHAT_TEMPLATE
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not tiny_qwen3.prepare(data, out, SHORT)
    hopeless = replace(SHORT, computing_accuracy=2.0)  # another recipe starts anew; what is there stays when it fails
    with pytest.raises(RuntimeError, match="after 4 steps"):
        tiny_qwen3.prepare(data, out, hopeless)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]


def test_a_second_start_needs_no_torch():
    source = "import sys, data_prep.tiny_qwen3; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True)


def test_same_seed_same_weights(data: Path):
    expressions = arithmetic.draw_expressions(DATA)
    weights = []
    for seed in (0, 0, 1):
        run, _ = tiny_model.warm_start(replace(SHORT, seed=seed), expressions)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_foreign_folders_and_missing_data_are_refused(tmp_path: Path, data: Path):
    with pytest.raises(FileExistsError, match="not of this command"):
        tiny_qwen3.prepare(data, data, SHORT)
    with pytest.raises(SystemExit, match=r"error: .*No such file.*train\.parquet"):
        tiny_qwen3.main(["--data", str(tmp_path), "--out", str(tmp_path / "model")])
    with pytest.raises(ValueError, match="the file has 100 rows: the warm start needs 102 or more"):
        tiny_qwen3.prepare(data, tmp_path / "model", replace(SHORT, held_out=51))
    pandas.DataFrame({"extra_info": [{"index": 0}]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="rows without 'expression': make it with data_prep.arithmetic"):
        tiny_qwen3.prepare(tmp_path, tmp_path / "model", SHORT)
