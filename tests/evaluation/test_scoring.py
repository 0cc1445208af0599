"""Scores are the scorer's own, failures count as wrong, and truths that nothing can match are refused at once."""

import math
from itertools import product

import pytest
from verl.utils.reward_score import default_compute_score

from cppo_verl.evaluation import EvaluationError, scoring, settings
from tests import ROOT
from tests.evaluation.data import problem, response

OWN = scoring.load(settings.Reward())
REWARDS = """
def plain(data_source, solution_str, ground_truth, extra_info, bonus=0):
    return len(solution_str) + bonus + extra_info['index']
async def later(data_source, solution_str, ground_truth, extra_info):
    return {'score': 0.5, 'acc': True}
def fails(**_):
    raise RecursionError('deep')
def number(solution_str, **_):
    return float(solution_str)
def accuracy(solution_str, **_):
    return {'score': 1, 'acc': float(solution_str), 'pred': 'half \\ud800 a pair'}
def unreadable(truth):
    return 'is odd' if truth == '3' else ''
"""


@pytest.fixture
def rewards(tmp_path):
    (tmp_path / "reward.py").write_text(REWARDS)
    return lambda name, **kwargs: scoring.load(settings.Reward(str(tmp_path / "reward.py"), name, kwargs))


def test_answers_score_as_verl_scores_them():
    """The paper's path: score, acc and pred to the bit."""
    forms = ("Answer: {}", "so\nAnswer: ${}$\n", "\\boxed{{{}}}", "**Answer:** {}", "answer {}", "Answer: {}.0", "")
    for source, form, said, before in product(("aime24", "math_dapo"), forms, ("2", "3"), (0, 290, 400)):
        text = "x" * before + form.format(said)
        theirs = default_compute_score(source, text, "2")
        ours = scoring.score(OWN, problem(source=source), response(text=text))
        assert (ours.reward, ours.acc, ours.pred) == (theirs["score"], float(theirs["acc"]), str(theirs["pred"]))
        assert ours.error is None


def test_custom_functions(rewards):
    def found(name, **kwargs):
        scoring.check(rewards(name, **kwargs), [problem()])
        return scoring.score(rewards(name, **kwargs), problem(3), response(text="ab"))

    assert (found("plain", bonus=10).reward, found("plain").acc) == (15.0, 5.0)
    assert (found("later").reward, found("later").acc) == (0.5, 1.0)
    failed = found("fails")
    assert (failed.reward, failed.acc, failed.error) == (None, 0.0, "RecursionError: deep")


@pytest.mark.parametrize(("name", "value"), [("number", "nan"), ("number", "-inf"), ("accuracy", "nan")])
def test_a_score_that_is_no_number_is_an_error_and_wrong(rewards, name, value):
    found = scoring.score(rewards(name), problem(), response(text=value))
    assert (found.reward, found.acc) == (None, 0.0) and value in found.error
    right = scoring.score(rewards(name), problem(), response(text="0.5"))
    assert (right.acc, right.error) == (0.5, None)
    assert right.pred in (None, "half ? a pair")  # a text that files can hold


READ = [
    *(("aime24", truth) for truth in ("34", " 34", "$34$", "\\frac{1}{2}", "[0,1]", "1,000")),
    *(("math_dapo", "0101"), ("openai/gsm8k", "34"), ("numina_cn_k12", 34)),
    *(("searchR1_nq", {"target": ["Paris"]}), ("codecontests", '{"inputs": [], "outputs": []}')),
]
REFUSED = [
    *(("aime24", truth) for truth in (34, "34.0", ["34"], '["34"]')),
    *(("openai/gsm8k", 34.0), ("aime25", "034"), ("HuggingFaceH4/MATH-500", 34)),
    *(("math_dapo", truth) for truth in ("", math.nan, "4" * 301)),
]


@pytest.mark.parametrize(("source", "truth"), READ)
def test_truths_that_can_be_matched_pass(source, truth):
    scoring.check(OWN, [problem(source=source, truth=truth)])


@pytest.mark.parametrize(("source", "truth"), REFUSED)
def test_truths_that_nothing_matches_are_refused_with_the_row(source, truth):
    with pytest.raises(EvaluationError, match=r"a.parquet, row 3: ground_truth") as refused:
        scoring.check(OWN, [problem(), problem(2, source=source, truth=truth)])
    if "34" in str(truth):
        assert "write the text '34'" in str(refused.value)


def test_a_reward_file_says_what_it_cannot_read(rewards):
    scoring.check(rewards("later"), [problem(truth="34.0")])
    with pytest.raises(EvaluationError, match="row 2: ground_truth is odd"):
        scoring.check(rewards("later"), [problem(), problem(1, truth="3")])
    ours = scoring.load(settings.Reward(str(ROOT / "data_prep/math_reward.py")))
    with pytest.raises(EvaluationError, match="ground_truth"):
        scoring.check(ours, [problem(truth='["34"]')])
