"""What the command line, a run's config and the defaults make of an evaluation, and what they refuse."""

import glob
import json
from types import SimpleNamespace

import pandas
import pytest

from cppo_verl.cli.main import main
from cppo_verl.evaluation import engine, evaluate, settings
from tests.evaluation.data import response, row, write


def test_the_command_line_goes_before_the_run_whose_data_may_be_a_pattern(tmp_path):
    data = tmp_path / "[1] a*b" / "x.parquet"
    data.parent.mkdir()
    data.touch()
    for said in (data, glob.escape(str(data)), tmp_path / "*b" / "x.parquet"):
        (tmp_path / "config.yaml").write_text(
            f"data: {{val_files: '{said}', max_response_length: 64, apply_chat_template_kwargs: {{thinking: false}}}}\n"
            "reward: {custom_reward_function: {path: r.py, name: f, reward_kwargs: {strict: true}}}\n"
            "actor_rollout_ref: {rollout: {dtype: float16, max_model_len: null}, model: {trust_remote_code: true}}\n"
        )
        run = settings.read_run_config(tmp_path / "config.yaml")
        assert run.val_files == [str(data)]
    assert run.reward == settings.Reward("r.py", "f", {"strict": True}) and run.trust_remote_code
    chosen = evaluate.sampling_of({"n": 4, "dtype": None, "max_response_length": 32}, run)
    assert (chosen.n, chosen.dtype, chosen.max_response_length, chosen.max_model_len) == (4, "float16", 32, None)
    assert chosen.chat_template_kwargs == {"thinking": False}
    assert settings.read_run_config(tmp_path / "none.yaml") == settings.RunConfig()
    paper = settings.Sampling()
    assert (paper.n, paper.temperature, paper.top_p) == (16, 0.7, 0.95)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def test_mistakes_are_one_sentence(model, tmp_path, capsys):
    unknown = str(write(tmp_path / "a.parquet", row("nobody's benchmark")))
    for arguments, said in (
        (["--data", unknown], 'verl has no scorer for data_source "nobody\'s benchmark": give one in --reward-file'),
        (["--data", str(tmp_path / "none.jsonl")], f"data file {tmp_path}/none.jsonl is not there"),
        ([], "no data: give parquet or jsonl files in --data"),
        (["--data", unknown, "--temperature", "0"], "--n 16: temperature 0 gives equal samples, so give --n 1"),
    ):
        assert main(["eval", str(model), *arguments]) == 1
        assert capsys.readouterr().err.startswith(f"cppo-verl eval: {said}")


def test_from_problems_to_tables_without_an_engine(model, tmp_path, capsys, monkeypatch):
    """All but generation: two answers a problem, the second of them right; and then again, from what was saved."""
    data = write(tmp_path / "a.parquet", row(), row(question="2+0?"), row("aime25", "3-1?"))

    def answers(_, prompts, sampling):
        for number in prompts.ids:
            yield [response(number, s, f"Answer: {1 + s}") for s in range(sampling.n)]

    monkeypatch.setattr(engine, "tokenise", lambda rows, *_: SimpleNamespace(ids={r.row: [1] for r in rows}))
    monkeypatch.setattr(engine, "start", lambda *of: started.append(of[-1]))
    monkeypatch.setattr(engine, "generate", answers)
    started: list[dict] = []
    arguments = ["eval", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    arguments += ["--n", "2", "--part-size", "2", "--enforce-eager", "--vllm", "max_num_seqs=16"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "2/3 problems saved" in said and "3/3 problems saved" in said
    assert main(arguments) == 0
    assert "3 of 3 problems are there already" in capsys.readouterr().out
    assert started == [{"trust_remote_code": False, "enforce_eager": True, "max_num_seqs": 16}]  # once
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["mean"]["mean"] == 0.5 and summary["settings"]["n"] == 2
    assert summary["model"] == str(model) and summary["verl_metrics"]["val-core/aime25/acc/mean@2"] == 0.5
    assert len(pandas.read_parquet(tmp_path / "out/samples.parquet")) == 6
