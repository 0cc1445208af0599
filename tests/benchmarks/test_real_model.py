"""The study's plan is whole, and its reading says what the plan fixed; and what the comparison of engines counts."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import real_model, same_tokens
from cppo_verl import presets
from tests.data_prep.test_validations import write

PLAN = yaml.safe_load(real_model.PLAN.read_text())


def finish(run: real_model.Run, accuracy: float, masked: float = 0.01) -> None:
    """A finished run with ``accuracy`` of ten questions right at its end and two at its start."""
    (run.folder / "logs").mkdir(parents=True)
    lines = [{"step": step, "data": {real_model.MASKED: masked * (step % 2)}} for step in range(1, 61)]
    (run.folder / "logs/metrics-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, share in ((0, 0.2), (60, accuracy)):
        write(run.folder, step, {str(question): [question < 10 * share] for question in range(10)})


def test_the_plan_has_its_runs_and_every_method_is_a_preset(tmp_path):
    runs = real_model.runs(PLAN, tmp_path)
    assert len(runs) == 12 + 1 and len({run.folder for run in runs}) == 13
    assert {run.method for run in runs} <= set(presets.names())
    assert [run.seed for run in runs[:4]] == [0] * 4  # seed by seed
    values = runs[0].environment(PLAN["settings"])
    assert (values["METHOD"], values["SEED"], values["STEPS"]) == ("cppo", "0", "60")
    assert (real_model.ROOT / PLAN["command"]).is_file()
    assert set(PLAN["reading"]) == {"learned", "rules", "binds", "topk", "texts", "stopping"}


def test_only_finished_runs_are_read(tmp_path):
    runs = real_model.runs(PLAN, tmp_path)
    assert real_model.read(PLAN, tmp_path) == "0 of 13 runs are finished"
    by_name = {(run.method, run.seed): run for run in runs}
    for seed, (cppo, grpo) in enumerate([(0.9, 0.6), (0.8, 0.5)]):
        finish(by_name["cppo", seed], cppo)
        finish(by_name["grpo", seed], grpo, masked=0.0)
    text = real_model.read(PLAN, tmp_path)
    assert text.startswith("4 of 13 runs are finished")
    assert "cppo seed 0: +0.700, standard error 0.153: rises by more than 3 of them; masked in 50% of the steps" in text
    assert "grpo seed 1: +0.300, standard error 0.153: does not rise by more than 3 of them; masked in 0%" in text
    assert "cppo - grpo at the end: +0.300, 95% +0.300 to +0.300, 2 seeds" in text


def test_a_run_that_fails_stops_the_study_and_finished_ones_are_not_started(tmp_path, monkeypatch):
    script = tmp_path / "script.sh"
    script.write_text(f'echo "$METHOD $SEED $STEPS" >> {tmp_path}/started; [ "$METHOD" != grpo ]')
    monkeypatch.setattr(real_model, "ROOT", tmp_path)
    finish(real_model.runs(PLAN, tmp_path)[0], 0.9)
    assert real_model.start(PLAN | {"command": script.name}, tmp_path) == 1
    assert (tmp_path / "started").read_text().split("\n") == ["dppo_tv 0 60", "grpo 0 60", ""]


def test_engines_are_compared_token_by_token():
    one = [[(1, -0.5), (2, -1.0)], [(3, -0.25)]]
    other = [[(1, -0.5), (2, -1.25)], [(4, -0.25)]]
    found = same_tokens.compare(one, other)
    assert found == {"prompts": 2, "same_prompts": 1, "tokens": 3, "largest_gap": pytest.approx(0.25)}


def test_prompts_are_chats(tmp_path: Path):
    import pandas

    from data_prep import tiny_qwen3

    tokenizer = tiny_qwen3.build_tokenizer()
    pandas.DataFrame({"prompt": [[{"role": "user", "content": "1+1"}]] * 3}).to_parquet(tmp_path / "val.parquet")
    prompts = same_tokens.prompts_of(tmp_path / "val.parquet", tokenizer, 2)
    assert len(prompts) == 2
    assert tokenizer.decode(prompts[0]) == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
