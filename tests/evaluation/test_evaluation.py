"""Evaluation without vLLM: estimates, problems, checkpoints, resumption, scores, tables, command line."""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st
from safetensors.torch import load_file

from cppo_verl.cli import eval as command
from cppo_verl.evaluation import (
    EvaluationError,
    checkpoint,
    engine,
    estimates,
    evaluate,
    problems,
    scoring,
    settings,
    store,
    tables,
)
from data_prep.tiny_model import build_tokenizer
from tests import ROOT

FORK = multiprocessing.get_context("fork")


def row(source="aime24", question="1+1?", truth="2", **more) -> dict:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": truth},
        **more,
    }


def write(path: Path, *rows: dict) -> Path:
    pandas.DataFrame(list(rows)).to_parquet(path, index=False)
    return path


def response(row=0, sample=0, text="Answer: 2", tokens=4, finish_reason="stop") -> store.Response:
    return store.Response(row, sample, text, tokens, finish_reason)


class TestEstimates:
    def test_worked_example(self):
        # problems' means 1, 1/2, 0; squared distances from 1/2: 1/4, 0, 1/4; divided by G(G-1) = 6
        found = estimates.clustered([[1, 1], [1, 0], [0, 0]])
        assert found.mean == 0.5
        assert found.standard_error == pytest.approx(math.sqrt(0.5 / 6))
        # only the second problem varies: v = 1/2, k v = 1, N = 6
        assert found.sampling_error == pytest.approx(1 / 6)

    def test_a_repeated_problem_is_one_cluster(self):
        # N = 5, m = 0.6; residual sums 2 - 4 m = -0.4 and 1 - m = 0.4; sqrt(2 * 0.32) / 5 = 0.16
        found = estimates.clustered([[1, 1, 0, 0], [1]])
        assert found.standard_error == pytest.approx(0.16)
        assert found.sampling_error is None

    def test_one_problem_has_no_standard_error(self):
        found = estimates.clustered([[1, 0, 1, 0]])
        assert found.standard_error is None
        assert found.sampling_error == pytest.approx(math.sqrt(1 / 3 / 4))

    def test_unweighted_mean(self):
        found = estimates.unweighted_mean([estimates.Estimate(0.2, 0.3, 0.06), estimates.Estimate(0.6, 0.4, 0.08)])
        assert (found.mean, found.standard_error) == (pytest.approx(0.4), pytest.approx(0.25))
        assert found.sampling_error == pytest.approx(0.05)
        assert estimates.unweighted_mean([found, estimates.Estimate(1, None, None)]).standard_error is None

    @pytest.mark.parametrize("empty", [[], [[1.0], []]])
    def test_nothing_to_estimate(self, empty):
        with pytest.raises(ValueError, match="at least one problem"):
            estimates.clustered(empty)

    @given(st.integers(2, 8), st.integers(2, 6), st.integers(0, 2**32 - 1))
    def test_with_equal_counts_it_is_the_standard_error_of_the_problems_means(self, groups, samples, seed):
        values = np.random.default_rng(seed).normal(size=(groups, samples))
        found = estimates.clustered(values.tolist())
        means = values.mean(axis=1)
        assert found.mean == pytest.approx(means.mean())
        assert found.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(groups))
        assert found.sampling_error == pytest.approx(math.sqrt((values.var(axis=1, ddof=1) / samples).mean() / groups))

    def test_both_errors_are_what_repeated_evaluations_show(self):
        """Spread of the mean over 2000 made-up evaluations: of new problems, and of the same problems again."""
        rng = np.random.default_rng(0)

        def evaluations(ability: np.ndarray) -> np.ndarray:
            return rng.random((*ability.shape, 16)) < ability[..., None]

        for ability, error in (
            (rng.beta(0.5, 0.8, size=(2000, 30)), "standard_error"),
            (np.tile(rng.beta(0.5, 0.8, size=30), (2000, 1)), "sampling_error"),
        ):
            drawn = evaluations(ability)
            estimated = [getattr(estimates.clustered(one.tolist()), error) ** 2 for one in drawn[:300].astype(float)]
            assert math.sqrt(np.mean(estimated)) == pytest.approx(drawn.mean(axis=(1, 2)).std(), rel=0.08)


class TestSettings:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"n": 0}, "--n 0: give 1 or more"),
            ({"temperature": -1.0}, "--temperature -1.0: give 0"),
            ({"top_p": 0.0}, "--top-p 0.0: give a number in"),
            ({"top_k": 0}, "--top-k 0: give -1"),
            ({"max_response_length": 0}, "--max-response-length 0"),
            ({"dtype": "int8"}, "--dtype int8: give one of bfloat16"),
            ({"temperature": 0.0}, "--n 16: temperature 0 gives equal samples, so give --n 1"),
        ],
    )
    def test_values_out_of_range(self, values, said):
        with pytest.raises(EvaluationError, match=said):
            settings.Sampling(**values)

    def test_the_defaults_are_the_papers(self):
        chosen = settings.Sampling()
        assert (chosen.n, chosen.temperature, chosen.top_p) == (16, 0.7, 0.95)

    def test_the_command_line_goes_before_the_run(self, tmp_path):
        (tmp_path / "config.yaml").write_text(
            "data: {val_files: a.parquet, max_response_length: 64, apply_chat_template_kwargs: {thinking: false}}\n"
            "reward: {custom_reward_function: {path: r.py, name: f, reward_kwargs: {strict: true}}}\n"
            "actor_rollout_ref: {rollout: {dtype: float16, max_model_len: null}, model: {trust_remote_code: true}}\n"
        )
        run = settings.read_run_config(tmp_path / "config.yaml")
        assert (run.val_files, run.reward) == (["a.parquet"], settings.Reward("r.py", "f", {"strict": True}))
        assert run.trust_remote_code
        chosen = evaluate._sampling({"n": 4, "dtype": None, "max_response_length": 32}, run)
        assert (chosen.n, chosen.dtype, chosen.max_response_length, chosen.max_model_len) == (4, "float16", 32, None)
        assert chosen.chat_template_kwargs == {"thinking": False}
        assert settings.read_run_config(tmp_path / "none.yaml") == settings.RunConfig()


class TestProblems:
    def test_numbers_rows_over_files_and_within_sources(self, tmp_path):
        first = write(tmp_path / "a.parquet", row(), row("aime25"), row(question="2?"))
        second = tmp_path / "b.jsonl"
        second.write_text(json.dumps(row("aime25", "3?")) + "\n")
        found = problems.read([first, second])
        assert [(p.row, p.data_source, p.number) for p in found] == [
            (0, "aime24", 0),
            (1, "aime25", 0),
            (2, "aime24", 1),
            (3, "aime25", 1),
        ]
        assert found[3].messages == [{"role": "user", "content": "3?"}]
        assert found[0].identity != found[2].identity

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            ({**row(), "prompt": "text"}, "row 1: prompt is no list"),
            ({**row(), "prompt": []}, "row 1: prompt is no list"),
            ({**row(), "reward_model": {"style": "rule"}}, "row 1: reward_model has no ground_truth"),
            ({**row(), "data_source": 3}, "row 1: data_source is 3"),
            (row(images=["x"]), "only text problems"),
            (row(agent_name="tool_agent"), "only single_turn_agent"),
        ],
    )
    def test_rows_that_are_no_problems(self, tmp_path, bad, said):
        with pytest.raises(EvaluationError, match=said):
            problems.read([write(tmp_path / "a.parquet", bad)])

    def test_files_that_are_no_data(self, tmp_path):
        bad = write(tmp_path / "a.parquet", {"question": "1+1?", "answer": "2"})
        with pytest.raises(
            EvaluationError, match="no column data_source, prompt, reward_model; it has question, answer"
        ):
            problems.read([bad])
        with pytest.raises(EvaluationError, match="does not exist"):
            problems.read([tmp_path / "b.parquet"])
        (tmp_path / "c.parquet").write_bytes(b"PAR1 torn")
        with pytest.raises(EvaluationError, match="cannot be read"):
            problems.read([tmp_path / "c.parquet"])
        (tmp_path / "d.csv").write_text("x")
        with pytest.raises(EvaluationError, match="must end in .parquet or .jsonl"):
            problems.read([tmp_path / "d.csv"])


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


class TestCheckpoint:
    def test_every_name_of_a_checkpoint_finds_it(self, run_dir, model):
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
    def test_two_shards_merge_to_the_weights_they_were_cut_from(self, run_dir, model, tmp_path, dtype):
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

    def test_the_fingerprint_follows_the_content(self, run_dir, tmp_path):
        copy = tmp_path / "run/global_step_1"
        shutil.copytree(run_dir / "checkpoints/global_step_7", copy)
        source = checkpoint.locate(str(copy))
        before = source.fingerprint()
        assert before == checkpoint.locate(str(run_dir)).fingerprint()
        shard = copy / "actor/model_world_size_2_rank_1.pt"
        state = torch.load(shard, weights_only=False)
        state["model.norm.weight"].to_local().add_(1)
        torch.save(state, shard)
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
    def test_damaged_checkpoints(self, run_dir, tmp_path, damage, said):
        step = tmp_path / "global_step_7"
        shutil.copytree(run_dir / "checkpoints/global_step_7", step)
        damage(step / "actor")
        with pytest.raises(EvaluationError, match=said):
            checkpoint.locate(str(step))

    def test_names_of_nothing(self, tmp_path, monkeypatch):
        with pytest.raises(EvaluationError, match="does not exist: give a folder, or a hub id"):
            checkpoint.locate(str(tmp_path / "none"))
        with pytest.raises(EvaluationError, match="neither a run .* nor a Hugging Face model"):
            checkpoint.locate(str(tmp_path))
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(EvaluationError, match="no weights"):
            checkpoint.locate(str(tmp_path))
        with pytest.raises(EvaluationError, match="is a file"):
            checkpoint.locate(str(tmp_path / "config.json"))
        (tmp_path / checkpoint.LATEST).write_text("40")
        with pytest.raises(EvaluationError, match="names step '40'"):
            checkpoint.locate(str(tmp_path))

    def test_a_hub_id_that_cannot_be_had(self):
        done = subprocess.run(
            [sys.executable, "-m", "cppo_verl.cli.main", "eval", "nobody/nothing"],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "model nobody/nothing is neither a folder here nor reachable on the hub" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.stack
    def test_a_merger_that_fails_says_why_and_leaves_no_model(self, run_dir, tmp_path):
        step = tmp_path / "global_step_7"
        shutil.copytree(run_dir / "checkpoints/global_step_7", step)
        (step / "actor/model_world_size_2_rank_1.pt").write_bytes(b"torn")
        with pytest.raises(EvaluationError, match="merging .* failed"):
            checkpoint.prepare(checkpoint.locate(str(step)), tmp_path / "out", "float32")
        assert not (tmp_path / "out/merged-float32").exists()


class TestTokenise:
    def test_ids_are_the_chat_templates(self, model):
        problem = problems.Problem(0, 0, "aime24", row(question="3+4=?")["prompt"], "7")
        found = engine.tokenise([problem], model, settings.Sampling(), False)
        rendered = found.tokenizer.apply_chat_template(problem.messages, add_generation_prompt=True, tokenize=False)
        assert found.tokenizer.decode(found.ids[0]) == rendered
        assert found.max_model_len == 64

    def test_a_prompt_longer_than_the_model(self, model):
        problem = problems.Problem(5, 2, "aime24", row(question="1" * 80)["prompt"], "7")
        with pytest.raises(EvaluationError, match=r"row 5 \(aime24 2\): the prompt has \d+ tokens, the model takes 64"):
            engine.tokenise([problem], model, settings.Sampling(), False)

    def test_seeds_follow_from_seed_and_row(self):
        seeds = {engine._seed(seed, row) for seed in range(4) for row in range(500)}
        assert len(seeds) == 2000
        assert engine._seed(1, 2) == engine._seed(1, 2)


SLOW = """
import sys, time
from pathlib import Path
from cppo_verl.evaluation import store
with store.Store(Path(sys.argv[1]), {"n": 1}) as saved:
    for row in range(1000):
        saved.append([store.Response(row, 0, "x" * 20000, 1, "stop")])
        print(row, flush=True)
"""


class TestStore:
    def test_kill_between_parts_loses_at_most_the_part_in_hand(self, tmp_path):
        process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 20:
                break
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with store.Store(tmp_path, {"n": 1}) as saved:
            rows = [r.row for r in saved.responses()]
            assert rows == list(range(len(rows)))
            assert 21 <= len(rows) < 1000
            saved.append([response(row=1000)])
            assert [r.row for r in saved.responses()] == [*rows, 1000]
        assert not list(tmp_path.rglob("*.tmp"))

    def test_a_changed_setting_refuses_and_fresh_starts_anew(self, tmp_path):
        before = {"n": 2, "model": "a", "data": ["1"]}
        with store.Store(tmp_path, before) as saved:
            saved.append([response(), response(sample=1)])
        with pytest.raises(
            EvaluationError, match=r'model: "a" before, "b" now; n: 2 before, 4 now\): give another --out'
        ):
            store.Store(tmp_path, {**before, "model": "b", "n": 4}).__enter__()
        with store.Store(tmp_path, before) as saved:
            assert saved.responses() == [response(), response(sample=1)]
        with store.Store(tmp_path, {**before, "n": 4}, fresh=True) as saved:
            assert saved.responses() == []

    def test_only_one_evaluation_at_a_time(self, tmp_path):
        with store.Store(tmp_path, {}), pytest.raises(EvaluationError, match="in use by another evaluation"):
            store.Store(tmp_path, {}).__enter__()

    def test_a_damaged_part_is_named(self, tmp_path):
        with store.Store(tmp_path, {}) as saved:
            saved.append([response()])
            (tmp_path / "parts/part-00000.parquet").write_bytes(b"torn")
            with pytest.raises(EvaluationError, match="part-00000.parquet cannot be read"):
                saved.responses()

    def test_a_deleted_part_does_not_make_the_next_one_overwrite(self, tmp_path):
        with store.Store(tmp_path, {}) as saved:
            for number in range(3):
                saved.append([response(row=number)])
            (tmp_path / "parts/part-00001.parquet").unlink()
            saved.append([response(row=1)])
            assert [r.row for r in saved.responses()] == [0, 1, 2]


def problem(number=0, source="aime24", question="1+1?", truth="2") -> problems.Problem:
    return problems.Problem(number, number, source, row(question=question)["prompt"], truth, {"index": number})


class TestScoring:
    def test_verls_own_scorer(self):
        scorer = scoring.load(settings.Reward())
        right, wrong = (scoring.score(scorer, problem(), response(text=f"so\nAnswer: {n}")) for n in (2, 3))
        assert (right.reward, right.acc, right.pred) == (1.0, 1.0, "2")
        assert (wrong.reward, wrong.acc, wrong.pred) == (-1.0, 0.0, "3")

    def test_an_unknown_source_fails_before_generation(self):
        scorer = scoring.load(settings.Reward())
        with pytest.raises(EvaluationError, match="no scorer for data_source 'arithmetic': give one in --reward-file"):
            scoring.check(scorer, [problem(), problem(source="arithmetic")])

    def test_custom_functions(self, tmp_path):
        file = tmp_path / "reward.py"
        file.write_text(
            "def plain(data_source, solution_str, ground_truth, extra_info, bonus=0):\n"
            "    return len(solution_str) + bonus + extra_info['index']\n"
            "async def later(data_source, solution_str, ground_truth, extra_info):\n"
            "    return {'score': 0.5, 'acc': True}\n"
            "def fails(**_):\n"
            "    raise RecursionError('deep')\n"
        )

        def found(name, **kwargs):
            scorer = scoring.load(settings.Reward(str(file), name, kwargs))
            scoring.check(scorer, [problem()])
            return scoring.score(scorer, problem(3), response(text="ab"))

        assert (found("plain", bonus=10).reward, found("plain").acc) == (15.0, 5.0)
        assert (found("later").reward, found("later").acc) == (0.5, 1.0)
        failed = found("fails")
        assert (failed.reward, failed.acc, failed.error) == (None, 0.0, "RecursionError: deep")
        with pytest.raises(EvaluationError, match="--reward-name nothing"):
            found("nothing")
        with pytest.raises(EvaluationError, match="none.py"):
            scoring.load(settings.Reward(str(tmp_path / "none.py")))


def score(row: int, sample: int, acc: float | None, reward: float | None = None) -> scoring.Score:
    return scoring.Score(response(row, sample, tokens=10 * (sample + 1)), acc if reward is None else reward, acc)


class TestTables:
    def test_summary_by_hand(self):
        rows = [problem(0), problem(1, question="2?"), problem(2, source="aime25")]
        scores = {0: [score(0, 0, 1), score(0, 1, 1)], 1: [score(1, 0, 0), score(1, 1, 0)], 2: [score(2, 0, 1)] * 2}
        summary = tables.summarise(rows, scores)
        found = summary["benchmarks"]["aime24"]
        assert (found["problems"], found["samples"], found["mean"], found["response_length"]) == (2, 4, 0.5, 15)
        assert found["standard_error"] == pytest.approx(0.5)  # means 1 and 0: sqrt((1/4 + 1/4) / 2)
        assert summary["mean"]["mean"] == 0.75
        assert summary["mean"]["standard_error"] is None  # aime25 has one problem
        assert summary["verl_metrics"] == {"val-core/aime24/acc/mean@2": 0.5, "val-core/aime25/acc/mean@2": 1.0}
        assert tables.console(summary).splitlines()[1].split() == ["aime24", "2", "4", "50.00", "50.00", "0.00", "0.0%"]

    def test_repeated_rows_are_one_problem(self):
        rows = [problem(number) for number in range(3)] + [problem(3, question="other")]
        scores = {r.row: [score(r.row, 0, float(r.row == 3))] for r in rows}
        found = tables.summarise(rows, scores)["benchmarks"]["aime24"]
        assert (found["problems"], found["rows"]) == (2, 4)
        # m = 1/4; residual sums -3/4 and 3/4; sqrt(2 * 2 * 9/16) / 4
        assert found["standard_error"] == pytest.approx(0.375)

    def test_without_accuracy_the_reward_counts(self):
        found = tables.summarise([problem()], {0: [score(0, 0, None, 0.25), score(0, 1, None, 0.75)]})
        assert found["benchmarks"]["aime24"]["metric"] == "reward"
        assert found["verl_metrics"] == {"val-core/aime24/reward/mean@2": 0.5}

    @trying(max_examples=30)  # verl's summary bootstraps
    @given(st.lists(st.lists(st.sampled_from([0.0, 1.0, None]), min_size=3, max_size=3), min_size=1, max_size=4))
    def test_the_means_are_those_of_verls_own_summary(self, accuracies):
        from verl.trainer.ppo.metric_utils import process_validation_metrics

        rows = [problem(number, question=str(number)) for number in range(len(accuracies))]
        scores = {
            r.row: [
                score(r.row, s, acc, 0.5)
                if acc is not None
                else scoring.Score(response(r.row, s), None, 0.0, error="raised")
                for s, acc in enumerate(accs)
            ]
            for r, accs in zip(rows, accuracies, strict=True)
        }
        kept = [(r.row, s) for r in rows for s in scores[r.row] if s.error is None]  # verl loses failed sessions
        ours = tables.summarise(rows, scores)["benchmarks"]["aime24"]
        if not kept:
            assert ours["mean"] == 0
            return
        theirs = process_validation_metrics(
            ["aime24"] * len(kept),
            [str(number) for number, _ in kept],
            {"acc": [s.acc for _, s in kept], "reward": [s.reward for _, s in kept]},
            expected_acc_counts={("aime24", str(r.row)): 3 for r in rows},
        )
        assert ours["mean"] == pytest.approx(theirs["aime24"]["acc"]["mean@3"])

    def test_a_reward_that_could_not_be_had_is_left_out(self):
        failed = scoring.Score(response(0, 1), None, 0.0, error="raised")
        found = tables.summarise([problem()], {0: [score(0, 0, None, 0.25), failed]})["benchmarks"]["aime24"]
        assert (found["metric"], found["mean"], found["scoring_errors"]) == ("reward", 0.25, 1)

    def test_files(self, tmp_path):
        rows, scores = [problem()], {0: [score(0, 0, 1.0), score(0, 1, 0.0)]}
        paths = tables.write(tmp_path, tables.summarise(rows, scores), rows, scores)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
        table = pandas.read_csv(tmp_path / "problems.csv")
        assert table[["data_source", "number", "problem", "ground_truth", "samples", "acc"]].values.tolist() == [
            ["aime24", 0, "1+1?", 2, 2, 0.5]
        ]
        assert len(pandas.read_parquet(tmp_path / "samples.parquet")) == 2
        assert pandas.read_parquet(tmp_path / "problems.parquet")["acc"].tolist() == [0.5]


class TestCommand:
    def parse(self, *arguments: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        command.add_parser(parser.add_subparsers())
        return parser.parse_args(["eval", *arguments])

    def test_options(self):
        args = self.parse("m", "--n", "4", "--vllm", "max_num_seqs=8", "--vllm", "quantization=fp8")
        assert args.run is command.run
        assert (args.n, args.temperature, args.vllm) == (4, None, [("max_num_seqs", 8), ("quantization", "fp8")])
        with pytest.raises(SystemExit):
            self.parse("m", "--chat-template-kwargs", "{no json")

    def test_mistakes_are_one_sentence(self, model, tmp_path, capsys):
        data = str(write(tmp_path / "a.parquet", row("nobody's benchmark")))
        for arguments, said in (
            ((str(model), "--data", data), 'verl has no scorer for data_source "nobody\'s benchmark"'),
            ((str(model),), "no data: give parquet or jsonl files in --data"),
            ((str(model), "--data", data, "--n", "0"), "--n 0: give 1 or more samples"),
        ):
            assert command.run(self.parse(*arguments)) == 1
            assert capsys.readouterr().err.startswith(f"cppo-verl eval: {said}")


def test_the_engines_options_reach_vllm_and_its_refusal_is_a_sentence(model):
    prompts = engine.Prompts({0: [1, 2, 3]}, 64, SimpleNamespace())
    options = engine.EngineOptions(extra={"no_such_argument": 1})
    with pytest.raises(EvaluationError, match="vLLM could not load .*no_such_argument"):
        engine.start(model, prompts, settings.Sampling(), options)
