"""The maths reward: verl's verdicts as they are, values beside them, and answers that try to break either."""

import json
import math
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sympy
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.utils.reward_score import default_compute_score

from data_prep import math_reward, reasoning_gym_reward
from data_prep.math_reward import compute_score
from data_prep.sandbox import Sandbox, SandboxError
from tests.data_prep.hostile_answers import hostile_completions
from tests.data_prep.test_answers import FORMS, PAIRS, corrupted, value_by_python

LIMIT = 0.2
KEYS = {"score", "acc", "pred", "timed_out", "paper", "verified"}


def score(response: Any, truth: Any = "5", **options: Any) -> dict[str, Any]:
    return compute_score("aime24", response, truth, **options)


def verified(answer: str, truth: str) -> Any:
    return score(f"Answer: {answer}", truth, math_verify=True, time_limit=20.0)["verified"]


# The paper's scorer


@pytest.mark.parametrize(
    ("response", "truth", "right", "pred"),
    [
        ("Answer: 5\nno, wait\nAnswer: 6", "5", False, "6"),
        ("Answer: 1,234", "1234", True, "1234"),
        ("so it is \\boxed{5}", "5", True, "5"),
        *[(response, "5", False, "[INVALID]") for response in ("it is 5", "", None, 5, b"Answer: 5", math.nan)],
        *[("Answer: 34", truth, True, "34") for truth in (34, 34.0)],  # a truth that is a number
        # What the paper's scorer takes for wrong, and anybody else for right: verified tells them apart
        ("Answer: **73**", "73", False, "**73**"),
        ("**Answer:** 34", "34", False, "**34"),
        ("Answer: 073", "73", False, "073"),
    ],
)
def test_the_papers_verdicts(response: Any, truth: Any, right: bool, pred: str):
    expected = {"score": 1.0 if right else -1.0, "acc": right, "pred": pred, "timed_out": False, "paper": right}
    found = score(response, truth)
    assert found == expected | {"verified": None} and type(found["acc"]) is bool


def test_verdicts_are_verls_to_the_bit():
    """Responses of every kind and length, right and wrong, some of them hostile."""
    rng = random.Random(3)
    frames = ["Answer: {}", "**Answer:** {}", "so \\boxed{{{}}}", "Answer: {}\nno.\nAnswer: 7", "it is {}", "Answer:{}"]
    pairs = [
        ("x" * rng.choice([0, 50, 299, 5000]) + frame.format(form), "5" if value == "none" else value)
        for number, frame in enumerate(frames)
        for form, value in FORMS[number::3]
    ]
    pairs += [(text, "5") for text in hostile_completions("/nowhere/t")]
    for response, truth in pairs:
        start = time.process_time()
        ours = score(response, truth)
        assert time.process_time() - start < 0.5
        check(ours)
        verls = default_compute_score("math_dapo", response, truth)
        assert (ours["score"], ours["acc"], ours["paper"]) == (verls["score"], verls["acc"], verls["acc"])
        assert ours["pred"] == "".join(c if c.isprintable() else "\ufffd" for c in verls["pred"])


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        *[("34", ""), ("x=5", ""), ("1,234", ""), ("\\frac12", ""), ("5 cm", ""), ("(0, 1]", "")],
        *[("34.0", "written '34'"), (34, ""), (34.0, ""), (2.5, "type float"), (["34"], "list"), (None, "missing")],
        *[("units", "the scorer reads ''"), ("\\$", "the scorer reads ''"), ("[INVALID]", "not an answer")],
    ],
)
def test_truths_that_no_response_or_any_response_reaches_are_named(truth: Any, reason: str):
    found = math_reward.unreadable(truth)
    assert reason in found and bool(reason) == bool(found)


@pytest.mark.parametrize(("truth", "reason"), [("5" * 301, "301 characters"), (["34"], "type list")])
def test_a_truth_that_nobody_can_reach_is_refused(truth: Any, reason: str):
    with pytest.raises(ValueError, match=reason):
        score("Answer: 5", truth)


# By value


@pytest.mark.parametrize(
    ("right", "truth", "answers"),
    [
        (True, "5", "10/2 ¦ \\sqrt{25} ¦ x = 5 ¦ $2+3$"),  # other ways to write a number: test_answers.py
        (True, "34", "m+n=34 ¦ f(2) = 34 ¦ a_{10}=34"),
        (True, "2", "\\sqrt[3]{8} ¦ \\log_{10} 100 ¦ 2!"),
        (True, "(1,2)", "(1,2) ¦ (1, 2) ¦ $(1,2)$ ¦ (\\frac{2}{2}, 2)"),
        (True, "\\{1,2\\}", "\\{2,1\\} ¦ \\{1,2\\}"),
        (True, "3\\sqrt{2}+1", "1+\\sqrt{18}"),
        (True, "x^2+1", "1+x^2 ¦ $x^{2} + 1$"),
        (True, "\\frac{1}{2^{99}}", "2^{-99} ¦ \\frac{1}{2^{99}}"),
        (True, "3\\sqrt{2}", "3√2 ¦ √18"),
        (True, "x \\le 3", "x ≤ 3"),
        (True, "5 cm", "5 cm ¦ 5 centimeters ¦ 5"),
        (True, "\\text{east}", "east ¦ East. ¦ **east**"),
        (False, "5", "5x ¦ 5, 6 ¦ 5 or 6 ¦ 5_{7} ¦ \\{5, 6\\} ¦ 5!"),
        (False, "73", "7_3 ¦ 7 3 2"),
        # Reported for other graders (the names are of their trackers)
        (False, "1 + \\frac{1}{\\mathrm{e}}", "1 - \\frac{1}{\\mathrm{e}}"),  # Math-Verify 82
        (False, "3x + 4y + 14=0", "3*x-1*y+13=0"),  # Math-Verify 60
        (False, "2", "2 2/3"),  # Math-Verify 81
        (False, "34", "2x=34"),
        (False, "x=5", "y=5 ¦ x=6"),
        (False, "5 cm", "5 m ¦ 5 cm²"),
        (False, "\\frac{1}{2^{99}}", "\\frac{1}{2^{98}} ¦ 2^{-98} ¦ 0"),
        (False, "x + 2^{-99}", "x + 2^{-98}"),
        (False, "(0,1)", "\\{0,1\\} ¦ [0,1] ¦ (0,1] ¦ (1,0)"),
        (False, "\\{0,1\\}", "(0,1) ¦ [0,1]"),
        (False, "\\frac{1}{3}", "0.333333 ¦ 0.33333333333333333"),
        (False, "\\pi", "3.1415926535"),
        (False, "east", "\\text{seat} ¦ seat"),
    ],
)
def test_only_equal_values_count(right: bool, truth: str, answers: str):
    for answer in answers.split(" ¦ "):
        assert verified(answer, truth) is right, answer


def test_either_verdict_earns_the_reward_and_both_are_kept():
    right = score("Answer: 10/2", math_verify=True, time_limit=20.0)
    assert right == {"score": 1.0, "acc": True, "pred": "10/2", "timed_out": False, "paper": False, "verified": True}
    other = score("Answer: 1 2", "12", math_verify=True, time_limit=20.0)  # the paper's scorer drops the space
    assert (other["score"], other["paper"], other["verified"]) == (1.0, True, False)
    assert score("it is 5", math_verify=True)["verified"] is False  # no answer is a wrong one


def test_corrupted_answers_earn_nothing_unless_equal(count: int = 60):
    """By hand with 10,000: none of them right that Python's own reader of numbers, or sympy, takes for another."""
    rng, signs = random.Random(5), "0123456789.-/+* ^"
    for _ in range(count):
        form, value = rng.choice([pair for pair in PAIRS if len(pair[0]) < 12])
        answer = corrupted(rng, form, signs)
        outcome = score("Answer: " + answer, str(value), math_verify=True, time_limit=LIMIT)
        check(outcome)
        plain, text = value_by_python(answer.strip().rstrip(".")), answer.strip()
        if outcome["verified"] and plain is not None:
            assert plain == value, answer
        elif outcome["verified"] and re.fullmatch(r"[\d.+-][\d.+*/^-]*[\d/+-]", text):  # no groups of digits
            python = re.sub(r"(?<![\d.])0+(?=\d)", "", text.replace("^", "**"))  # 08 is no number to it
            assert sympy.sympify(python, rational=True) == sympy.Rational(value.numerator, value.denominator), answer


def test_what_cannot_judge_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch):
    entry = json.dumps({"question": "?", "answer": "5", "metadata": {"source_dataset": "chain_sum"}})
    for reward in (math_reward, reasoning_gym_reward):
        monkeypatch.setattr(reward, "_judge", Sandbox("data_prep.no_such_module"))
        with pytest.raises(SandboxError, match="No answer is judged"):
            reward.compute_score("any", "Answer: 10/2+0", "5", {"entry": entry}, math_verify=True)


def check(verdict: dict[str, Any]) -> None:
    """Complete, finite, +1 or -1, and fit for a log file."""
    assert set(verdict) == KEYS
    assert verdict["score"] in (1.0, -1.0) and verdict["acc"] is (verdict["score"] == 1.0)
    assert verdict["acc"] is (verdict["paper"] or bool(verdict["verified"]))
    assert "\0" not in verdict["pred"] and len(verdict["pred"]) <= 300
    json.dumps(verdict, ensure_ascii=False).encode("utf-8")


def test_hostile_completions_by_value_in_threads(tmp_path: Path):
    with ThreadPoolExecutor(8) as threads:
        verify = partial(score, math_verify=True, time_limit=LIMIT)
        verdicts = list(threads.map(verify, hostile_completions(str(tmp_path / "trace"))))
    for verdict in verdicts:
        check(verdict)
    assert any(verdict["timed_out"] for verdict in verdicts) and not list(tmp_path.iterdir())
    assert verified("10/2", "5")


def test_validation_metrics_tell_the_verdicts_apart():
    responses = [f"Answer: {answer}" for answer in ("5", "6", "99999999!", "5.")]
    verdicts = [score(response, math_verify=True, time_limit=LIMIT) for response in responses]
    infos = {key: [verdict[key] for verdict in verdicts] for key in KEYS}
    metrics = process_validation_metrics(["aime24"] * 4, ["a"] * 4, infos)["aime24"]
    assert metrics["acc"]["mean@4"] == 0.5 and metrics["paper"]["mean@4"] == 0.25
    assert metrics["timed_out"]["mean@4"] == 0.25 and metrics["verified"]["mean@3"] == pytest.approx(2 / 3)
