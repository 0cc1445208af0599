"""reasoning-gym's tasks as data and its scorers as a reward, with the package itself."""

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pandas
import pytest

pytest.importorskip("reasoning_gym", reason="pip install 'cppo_verl[real]'")

from data_prep import gym_judge  # noqa: E402
from data_prep import reasoning_gym_data as data  # noqa: E402
from data_prep import reasoning_gym_reward as reward  # noqa: E402
from data_prep.reasoning_gym_data import Arguments  # noqa: E402
from tests import ROOT  # noqa: E402
from tests.data_prep.test_answers import PAIRS, corrupted, value_by_python  # noqa: E402

SUMS = "chain_sum(min_terms=2, max_terms=3, max_digits=2)"
SMALL = Arguments(tasks=f"{SUMS}, gcd(max_value=60)", train=40, val=10, warm=20, prompt="Give the number.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gym")
    assert data.prepare(out, SMALL)
    return out


def rows(folder: Path, split: str) -> list[dict]:
    return pandas.read_parquet(folder / f"{split}.parquet").to_dict("records")


def items_of(task: str, count: int) -> list[dict]:
    return data.draw(task, {}, 0, count, set())


def score(response, truth: str, item: dict | None = None, **limits) -> dict:
    """The verdict on a response; without an item, of a question whose answer is the number ``truth``."""
    metadata = {"source_dataset": "chain_sum", "expression": truth}
    entry = data.as_json(item or {"question": "?", "answer": truth, "metadata": metadata})
    return reward.compute_score("rg", response, truth, {"entry": entry}, **limits)


# Data


def test_tasks_are_written_as_calls():
    found = data.parse_tasks("chain_sum(max_terms=3, allow_negation=True), gcd, shapes(styles=('plain', 'frac'))")
    options = {"max_terms": 3, "allow_negation": True}
    assert found == {"chain_sum": options, "gcd": {}, "shapes": {"styles": ("plain", "frac")}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "name one task or more"),
        ("gcd, gcd(max_value=60)", "each task once"),
        ("gcd(60)", "neither a name nor NAME(option=value)"),
        ("gcd(max_value=open('x'))", "is no list like"),
        ("gcd] + [gcd", "is no list like"),
        ("gdc", "reasoning-gym refuses gdc with {} (--tasks list)"),
        ("gcd(most=60)", "unexpected keyword argument 'most'"),
        ("gcd(seed=1)", "reasoning-gym refuses gcd"),
        ("gcd(max_value=0)", "reasoning-gym refuses gcd"),
        ("gcd(max_value=2)", "gave 4 new questions in 250 draws, of 5 wanted: ask for fewer rows"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, text, words):
    with pytest.raises(SystemExit, match=f"error: .*{re.escape(words)}"):
        data.main(["--out", str(tmp_path / "out"), "--tasks", text, "--train", "5", "--val", "0"])
    assert not (tmp_path / "out").exists()


def test_a_scorer_that_denies_its_own_answers_is_refused(monkeypatch):
    monkeypatch.setattr(reward, "marks", lambda pairs: [0.5] * len(pairs))
    with pytest.raises(ValueError, match="its own answer '.*' 0.5 of 1 marks, so that it cannot be a reward"):
        items_of("gcd", 1)


def test_splits_have_what_was_asked_for_and_no_question_twice(folder):
    questions = []
    for split, size in (("train", 40), ("val", 10), ("warm", 20)):
        found = rows(folder, split)
        assert [row["extra_info"]["index"] for row in found] == list(range(size))
        assert {row["extra_info"]["split"] for row in found} == {split}
        counts = Counter(row["data_source"] for row in found)
        assert counts == {"rg_chain_sum": size // 2, "rg_gcd": size // 2}
        questions += [row["prompt"][-1]["content"] for row in found]
        for row in found:
            info, truth = row["extra_info"], row["reward_model"]["ground_truth"]
            entry = json.loads(info["entry"])
            system = {"role": "system", "content": "Give the number."}
            assert list(row["prompt"]) == [system, {"role": "user", "content": entry["question"]}]
            assert row["reward_model"] == {"style": "rule", "ground_truth": entry["answer"]}
            assert reward.compute_score(row["data_source"], info["solution"], truth, info)["acc"]
    assert len(set(questions)) == 70


def test_the_same_arguments_find_it_done_and_others_do_not(folder, tmp_path, capsys):
    before = (folder / "train.parquet").stat().st_mtime_ns
    assert not data.prepare(folder, SMALL)
    assert (folder / "train.parquet").stat().st_mtime_ns == before
    line = ["--out", str(tmp_path), "--train", "5", "--val", "5", "--seed", "1", "--prompt", "none", "--tasks"]
    data.main([*line, SUMS])
    assert capsys.readouterr().out == f"{tmp_path}: written\n" and not (tmp_path / "warm.parquet").exists()
    mine, theirs = ({row["prompt"][-1]["content"] for row in rows(where, "val")} for where in (tmp_path, folder))
    assert not mine & theirs
    assert [message["role"] for message in rows(tmp_path, "val")[0]["prompt"]] == ["user"]
    with pytest.raises(SystemExit):
        data.main([*line, "list"])
    assert len(capsys.readouterr().out.splitlines()) > 100


def test_the_commonest_answer_is_counted(folder):
    gcd = json.loads((folder / "manifest.json").read_text())["commonest_answer"]["rg_gcd"]
    train, val = (
        [row["reward_model"]["ground_truth"] for row in rows(folder, split) if row["data_source"] == "rg_gcd"]
        for split in ("train", "val")
    )
    assert train.count(gcd["answer"]) == max(Counter(train).values())
    assert gcd["accuracy"] == val.count(gcd["answer"]) / 5


@pytest.mark.parametrize(
    ("expression", "answer", "lines"),
    [("98 + 93 - 77", "114", "98+93=191\n191-77=114"), ("3 - 8", "-5", "3-8=-5"), ("7", "7", "")],
)
def test_a_chain_sum_is_worked_out_in_steps(expression, answer, lines):
    item = {"answer": answer, "metadata": {"expression": expression}}
    assert data.worked_solution("chain_sum", item) == lines


# The reward


def test_only_full_marks_count():
    (item,) = items_of("gcd", 1)
    truth = item["answer"]
    right = score(f"The GCD is {truth}.", truth, item)
    assert right == {"score": 1.0, "acc": True, "partial": 1.0, "pred": truth, "timed_out": False}
    wrong = score(str(int(truth) + 1), truth, item)
    assert (wrong["score"], wrong["acc"]) == (0.0, False) and wrong["partial"] < 1
    for item in items_of("spell_backward", 5):
        found = score(item["answer"] + "x", item["answer"], item)
        assert found["score"] == 0.0 and 0 < found["partial"] <= 1  # 1: the scorer's sum of sevenths is above it
    with pytest.raises(ValueError, match="rows without extra_info.entry; make them with data_prep.reasoning_gym_data"):
        reward.compute_score("rg_gcd", "4", "4", {"index": 1})


def test_hostile_responses_score_nothing_and_fast():
    for response in (None, 7, "", "\0\ud800", "9" * 10**6, "<answer>" * 5000):
        start = time.process_time()
        found = score(response, "5")
        assert found["score"] == 0.0 and found["pred"].isprintable()
        assert time.process_time() - start < 2  # what backtracks takes minutes


def test_corrupted_answers_earn_nothing_unless_equal(count: int = 150):
    """By hand with 10,000."""
    rng = random.Random(4)
    for _ in range(count):
        form, value = rng.choice([pair for pair in PAIRS if pair[1].denominator == 1])
        answer = corrupted(rng, form, "0123456789.-/+* ,")
        found = score(f"<answer>{answer}</answer>", str(value))
        plain = value_by_python(answer.strip().rstrip("."))
        assert not found["acc"] or plain in (None, value) and Fraction(found["pred"]) == value, answer


def test_tasks_of_every_kind_reward_their_own_answers():
    for task in ("chain_sum", "n_queens", "sokoban", "word_ladder", "time_intervals", "bf", "codeio"):
        (item,) = items_of(task, 1)
        for response in (f"<answer>{item['answer']}</answer>", str(item["answer"])):
            assert score(response, str(item["answer"]), item)["acc"], item["answer"]


# Scorers that evaluate

AUDIT = """
import json, sys
from data_prep import gym_judge, reasoning_gym_data as data
items = {name: data.as_json(data.open_task(name, {}, 0, 1)[0]) for name in data.names()}
found, task = set(), ""
def watch(event, args):
    where = args[1] if event == "compile" else ""
    if where != "<unknown>" and "zqx" in repr(args[:2]) + repr(getattr(args[0] if args else 0, "co_names", "")):
        found.add(task)
sys.addaudithook(watch)  # <unknown>: ast.literal_eval, which compiles to a tree and runs nothing
code = ["__import__('zqx').f()", "open('zqx','w')", "[open('zqx','w')]", "1+len('zqx')", "zqx(1)", "x + zqx", "x.zqx",
        '{"a": open("zqx")}', "sin(open('zqx'))", "3 + 4 - zqx('1')", "[zqx for x in ()]"]
def tasks_that_evaluate():
    global task
    found.clear()
    for task, item in items.items():
        gym_judge.marks([[task, text, item] for text in code])
    return sorted(found)
bare = tasks_that_evaluate()
gym_judge.prepare()
print("\\n" + json.dumps([len(items), bare, tasks_that_evaluate()]))
"""


def test_no_task_evaluates_an_answer_that_is_code(tmp_path):
    """Every task of the package, watched by Python's own audit, which catches them without the grammars."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{AUDIT}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    tasks, bare, guarded = json.loads(done.stdout.splitlines()[-1])
    assert tasks > 100 and guarded == []
    assert {"countdown", "puzzle24", "n_queens", "string_insertion", "simple_integration"} <= set(bare)


def test_only_arithmetic_is_evaluated():
    assert gym_judge.expression("3 × (4 − 1) ÷ 2") == "3 * (4 - 1) / 2"
    for text in ("3 + 4*(2 - 1)/5", "x**2 + sin(2*x)/3 - C", "exp(-x)*sqrt(2.5e-3)"):
        assert gym_judge.expression(text) == text
    for text in ("__import__('os')", "open('x')", "x.real", "f'{x}'", "[1]", "x if y else z", "x;y", "1_0", "a=1"):
        with pytest.raises(gym_judge.RefusedText):
            gym_judge.expression(text)


def test_answers_that_are_code_or_never_end_earn_nothing(tmp_path):
    (item,), victim = items_of("countdown", 1), tmp_path / "victim"
    victim.write_text("whole")
    for answer, right, timed_out in (
        (item["answer"], True, False),
        (item["answer"].replace("*", "×").replace("-", "−"), True, False),
        ("9**9**9**9**9", False, True),
        (f"__import__('os').remove({str(victim)!r})", False, False),
        (f"open({str(victim)!r}, 'w')", False, False),
    ):
        found = score(answer, "text", item, time_limit=0.5 if timed_out else 2.0)
        assert (found["acc"], found["timed_out"]) == (right, timed_out), answer
    assert victim.read_text() == "whole"
