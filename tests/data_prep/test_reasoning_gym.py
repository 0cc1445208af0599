"""reasoning-gym's tasks as data and its scorers as a reward, with the package itself."""

import inspect
import json
import re
import time
from pathlib import Path

import pandas
import pytest

pytest.importorskip("reasoning_gym", reason="pip install 'cppo_verl[real]'")

from reasoning_gym.factory import DATASETS  # noqa: E402

from data_prep import reasoning_gym_data as data  # noqa: E402
from data_prep import reasoning_gym_reward as reward  # noqa: E402
from data_prep.reasoning_gym_data import Arguments, Task, TaskError  # noqa: E402

SUMS = "chain_sum(min_terms=2, max_terms=3, max_digits=2)"
SMALL = Arguments(tasks=f"{SUMS}, gcd(max_value=60)", train=40, val=10, warm=20, prompt="Give the number.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gym")
    assert data.prepare(out, SMALL)
    return out


def rows(folder: Path, split: str) -> list[dict]:
    return pandas.read_parquet(folder / f"{split}.parquet").to_dict("records")


# ---- tasks


def test_tasks_are_written_as_calls():
    found = data.parse_tasks("chain_sum(max_terms=3, allow_negation=True), gcd")
    assert found == [Task("chain_sum", {"max_terms": 3, "allow_negation": True}), Task("gcd")]
    assert [str(task) for task in found] == ["chain_sum(max_terms=3, allow_negation=True)", "gcd"]
    listed = data.parse_tasks("fraction_simplification(styles=('plain', 'latex_frac'))")
    assert listed[0].options == {"styles": ("plain", "latex_frac")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "name one task or more"),
        ("gcd, gcd(max_value=60)", "each once"),
        ("gcd(60)", "neither a name nor NAME(option=value)"),
        ("gcd(**{})", "options without a name"),
        ("gcd(max_value=open('x'))", "is no list like"),
        ("gcd(", "is no list like"),
    ],
)
def test_what_is_no_list_of_tasks_is_refused(text, words):
    with pytest.raises(TaskError, match=re.escape(words)):
        data.parse_tasks(text)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task("gdc"), "gdc is no task of reasoning-gym 0.1.25; it has ab, acre"),
        (Task("composite"), "is no task"),
        (Task("gcd", {"most": 60}), "gcd has no option most; it has min_numbers, max_numbers"),
        (Task("gcd", {"seed": 1}), "gcd has no option seed"),
        (Task("gcd", {"max_value": 0}), "reasoning-gym refuses gcd(max_value=0)"),
    ],
)
def test_a_task_that_cannot_be_made_is_refused(task, words):
    with pytest.raises(TaskError, match=re.escape(words)):
        data.open_task(task, 0, 1)


def test_difficulty_is_an_option():
    for digits in (1, 4):
        (item,) = data.draw(Task("chain_sum", {"min_digits": digits, "max_digits": digits}), 0, 1, set())
        terms = re.findall(r"\d+", item["metadata"]["expression"])
        assert {len(term) for term in terms} == {digits}


def test_a_task_with_too_few_questions_says_so(tmp_path):
    few = Arguments(tasks="chain_sum(min_terms=2, max_terms=2, max_digits=1)", train=500, val=4)
    with pytest.raises(TaskError, match=r"gave \d+ new questions in \d+ draws, of 500 wanted: ask for fewer rows"):
        data.prepare(tmp_path / "few", few)
    assert not (tmp_path / "few").exists()


def test_a_scorer_that_denies_its_own_answer_is_refused():
    with pytest.raises(TaskError, match="cannot be a reward"):
        data.draw(Task("rearc"), 10**7, 1, set())


# ---- splits


def test_splits_have_what_was_asked_for_and_no_question_twice(folder):
    questions = []
    for split, size in (("train", 40), ("val", 10), ("warm", 20)):
        found = rows(folder, split)
        assert [row["extra_info"]["index"] for row in found] == list(range(size))
        assert {row["extra_info"]["split"] for row in found} == {split}
        counts = pandas.Series([row["data_source"] for row in found]).value_counts()
        assert dict(counts) == {"rg_chain_sum": size // 2, "rg_gcd": size // 2}
        questions += [row["prompt"][-1]["content"] for row in found]
    assert len(set(questions)) == 70


def test_neighbouring_seeds_would_share_items_and_the_splits_do_not():
    """The reason for the distance: item 1 of seed 0 is item 0 of seed 1."""
    task = Task("chain_sum")
    first, second = (data.open_task(task, seed, 2) for seed in (0, 1))
    assert first[1]["question"] == second[0]["question"]
    assert data.DISTANCE > data.MOST_DRAWS * 10**5


def test_rows_have_verls_columns(folder):
    row = rows(folder, "train")[0]
    assert list(row["prompt"]) == [
        {"role": "system", "content": "Give the number."},
        {"role": "user", "content": json.loads(row["extra_info"]["entry"])["question"]},
    ]
    assert row["reward_model"]["style"] == "rule"
    assert row["reward_model"]["ground_truth"] == json.loads(row["extra_info"]["entry"])["answer"]


def test_the_same_arguments_find_it_done_and_others_do_not(folder, tmp_path):
    before = (folder / "train.parquet").stat().st_mtime_ns
    assert not data.prepare(folder, SMALL)
    assert (folder / "train.parquet").stat().st_mtime_ns == before
    other = Arguments(tasks=SUMS, train=5, val=5, seed=1, prompt="none")
    assert data.prepare(tmp_path, other) and not (tmp_path / "warm.parquet").exists()
    mine, theirs = ({row["prompt"][-1]["content"] for row in rows(where, "val")} for where in (tmp_path, folder))
    assert not mine & theirs
    assert [message["role"] for message in rows(tmp_path, "val")[0]["prompt"]] == ["user"]


def test_the_commonest_answer_is_counted(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    gcd = manifest["commonest_answer"]["rg_gcd"]
    train = pandas.Series(
        [r["reward_model"]["ground_truth"] for r in rows(folder, "train") if r["data_source"] == "rg_gcd"]
    )
    assert train.value_counts()[gcd["answer"]] == train.value_counts().max()
    right = [
        r["reward_model"]["ground_truth"] == gcd["answer"] for r in rows(folder, "val") if r["data_source"] == "rg_gcd"
    ]
    assert gcd["accuracy"] == sum(right) / 5


@pytest.mark.parametrize(
    ("expression", "answer", "lines"),
    [("98 + 93 - 77", "114", "98+93=191\n191-77=114"), ("3 - 8", "-5", "3-8=-5"), ("7", "7", "")],
)
def test_a_chain_sum_is_worked_out_in_steps(expression, answer, lines):
    item = {"answer": answer, "metadata": {"expression": expression}}
    assert data.worked_solution("chain_sum", item) == lines


def test_worked_solutions_get_full_marks(folder):
    for row in rows(folder, "warm"):
        info = row["extra_info"]
        assert reward.compute_score(row["data_source"], info["solution"], row["reward_model"]["ground_truth"], info)[
            "acc"
        ]


def test_the_command_line(tmp_path, capsys):
    data.main(["--out", str(tmp_path), "--tasks", SUMS, "--train", "4", "--val", "2"])
    assert capsys.readouterr().out == f"{tmp_path}: written\n"
    with pytest.raises(SystemExit) as stop:
        data.main(["--out", str(tmp_path), "--tasks", "sums"])
    assert stop.value.code == 1 and "sums is no task" in capsys.readouterr().err


# ---- which answer is read


@pytest.mark.parametrize(
    ("response", "truth", "answer"),
    [
        ("It is 5. <answer>7</answer> or <answer> 12 </answer> then 9", "12", "12"),  # the last tag
        ("Answer: 3\nno, wait.\nAnswer: 4\nthat is all", "cat", "4\nthat is all"),  # what follows the last mark
        ("Answer: <answer>cat</answer>", "cat", "cat"),  # a tag before a mark
        ("  tac \n", "tac", "tac"),  # the whole response
        ("1 2\n3 4", "1 2\n3 4", "1 2\n3 4"),  # of several lines too
        ("98+93=191\n191-77=114", "114", "114"),  # a number is wanted: the last one
        ("7-12=-5", "-5", "-5"),
        ("so 12-5", "5", "5"),  # a minus between two numbers is no sign
        ("minus: -5", "-5", "-5"),
        ("1,234,567 in all.", "1234567", "1234567"),
        ("3,4", "4", "4"),  # no groups of three
        ("0.5 or 1/2", "1/2", "1/2"),
        ("12.50", "12.5", "12.50"),
        ("no idea", "4", "no idea"),
        ("<answer></answer>", "4", ""),
        ("", "4", ""),
    ],
)
def test_the_answer_that_is_read(response, truth, answer):
    assert reward.read_answer(response, truth) == answer


def test_only_full_marks_count(folder):
    row = next(row for row in rows(folder, "val") if row["data_source"] == "rg_gcd")
    truth, info = row["reward_model"]["ground_truth"], row["extra_info"]
    right = reward.compute_score("rg_gcd", f"The GCD is {truth}.", truth, info)
    assert right == {"score": 1.0, "acc": True, "partial": 1.0, "pred": truth, "timed_out": False}
    wrong = reward.compute_score("rg_gcd", str(int(truth) + 1), truth, info)
    assert (wrong["score"], wrong["acc"]) == (0.0, False) and wrong["partial"] < 1


def test_partial_marks_are_reported_and_earn_nothing():
    for item in data.draw(Task("spell_backward"), 0, 20, set()):
        info = {"entry": data.as_json(item)}
        found = reward.compute_score("rg_spell_backward", item["answer"] + "x", item["answer"], info)
        assert found["score"] == 0.0 and 0 < found["partial"] <= 1  # 1: the scorer's sum of sevenths is above it


@pytest.mark.parametrize("response", [None, 7, "", "\0\ud800", "9" * 10**6, "<answer>" * 5000, "-" * 10**6])
def test_hostile_responses_score_nothing_and_fast(folder, response):
    row = rows(folder, "val")[0]
    start = time.monotonic()
    found = reward.compute_score("rg", response, row["reward_model"]["ground_truth"], row["extra_info"])
    assert found["score"] == 0.0 and found["pred"].isprintable()
    assert time.monotonic() - start < 10  # what backtracks takes minutes


def test_rows_of_another_making_are_refused():
    with pytest.raises(ValueError, match="rows without extra_info.entry; make them with data_prep.reasoning_gym_data"):
        reward.compute_score("rg_gcd", "4", "4", {"index": 1})


# ---- scorers that evaluate


def test_the_scorers_that_evaluate_are_known():
    """Every task whose module evaluates text somewhere is in the list, or evaluates its own text only."""
    own_text = {"basic_arithmetic", "bitwise_arithmetic", "gsm_symbolic", "number_sorting", "propositional_logic"}
    calls = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")
    found = {name for name, (kind, _) in DATASETS.items() if calls.search(Path(inspect.getfile(kind)).read_text())}
    assert found - own_text == reward.EVALUATING
    assert "eval(answer" not in inspect.getsource(DATASETS["number_sorting"][0].score_answer)


def test_an_answer_that_is_code_is_bounded_and_writes_nothing(tmp_path):
    (item,) = data.draw(Task("countdown"), 0, 1, set())
    entry = data.as_json(item)
    assert reward.score(item["answer"], entry) == (1.0, False)
    assert reward.score("9**9**9**9**9", entry, time_limit=0.5) == (0.0, True)
    path = tmp_path / "written"
    marks, _ = reward.score(f"open({str(path)!r}, 'w').write('x')", entry)
    assert marks < 1 and (not path.exists() or not path.read_text())
    assert reward.score(item["answer"], entry) == (1.0, False)  # the next one is scored again


@pytest.mark.parametrize("name", sorted({"chain_sum", "n_queens", "sokoban", "word_ladder", "time_intervals", "bf"}))
def test_tasks_of_every_kind_reward_their_own_answers(name):
    for item in data.draw(Task(name), 0, 2, set()):
        found = reward.compute_score(
            "rg_" + name, f"<answer>{item['answer']}</answer>", item["answer"], {"entry": data.as_json(item)}
        )
        assert found["acc"], item["answer"]
