"""Written forms of numbers (forms.txt), where the answer stands in a response, truths that cannot be scored."""

import math
import random
import re
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from data_prep import answers

FORM_LINES = re.findall(r"^(\S+) = (.*)$", (Path(__file__).parent / "forms.txt").read_text(encoding="utf-8"), re.M)
FORMS = [
    (re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), form), value)
    for value, line in FORM_LINES
    for form in line.split(" ¦ ")
]
PAIRS = [(form, Fraction(value)) for form, value in FORMS if value != "none"]


@pytest.mark.parametrize(("form", "value"), [*FORMS, ("", "none")])
def test_a_written_number_has_its_value_and_what_is_none_has_not(form, value):
    expected = None if value == "none" else Fraction(value)
    assert answers.number(form) == expected
    assert expected is None or Fraction(answers.last_number(form)) == expected


@pytest.mark.parametrize(
    ("last", "texts"),
    [
        ("114", "98+93=191\n191-77=114"),
        ("-5", "7-12=-5 ¦ x is - 5 ¦ minus: -5"),
        ("5", "so 12-5 ¦ 3 \u2013 5 ¦ x - 5 ¦ 7 minus 5"),  # a minus between two numbers is no sign
        ("-8", "7\n- 8"),
        ("1000", "The total is 1 000."),
        ("191", "98+93 191"),  # no groups of one number
        ("100", "3 7 100"),
        ("4", "3,4"),
        ("1/2", "0.5 or 1/2"),
        ("12.50", "12.50"),  # as precise as it was written
        ("2.5e-5", "2.5e-05"),
        (None, "no idea"),
    ],
)
def test_the_last_number_of_a_text(last, texts):
    for text in texts.split(" ¦ "):
        assert answers.last_number(text) == last, text


@pytest.mark.parametrize(
    ("response", "truth", "answer"),
    [
        ("It is 5. <answer>7</answer> or <answer> 12 </answer> then 9", "12", "12"),  # the last tag
        ("Answer: 3\nno, wait.\nAnswer: 4\nthat is all", "cat", "4\nthat is all"),  # what follows the last mark
        ("**Answer:** cat", "dog", "cat"),
        ("Answer: <answer>cat</answer>", "cat", "cat"),  # a tag before a mark
        ("so it is \\boxed{cat}.", "dog", "cat"),  # of that, the last box
        ("<answer>**cat**</answer>", "dog", "cat"),  # without markup around it
        ("```text\n1 2\n3 4\n```", "1 2\n3 4", "1 2\n3 4"),
        ("_ Q _\nQ _ _", "Q _ _\n_ Q _", "_ Q _\nQ _ _"),  # unless the truth has it too
        ("<answer>1 000</answer>", "1000", "1000"),
        ("no idea", "4", "no idea"),
        ("<answer></answer>", "4", ""),
    ],
)
def test_the_answer_to_a_task(response, truth, answer):
    assert answers.final(response, truth) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 6\nno, wait\nAnswer: $5$", "$5$"),
        ("**Answer:** 34", "34"),
        ("\\[Answer: 009\\]", "009\\]"),
        ("answer :\n\n 34", "34"),
        ("Answer: 5\nAnswer:", "5"),
        ("it is \\boxed{\\frac{1}{2}} or \\boxed{2", "\\frac{1}{2}"),
        ("Answer: 5" + " " * 300, ""),  # beyond the paper's 300 characters
        ("it is 5", ""),
    ],
)
def test_the_answer_that_is_stated(response, answer):
    assert answers.stated(response) == answer


def test_truths_lose_type_and_idle_zeros_and_whole_numbers_leading_ones():
    given = [34, 34.0, "34.0", " 34 ", 10**23 + 1, "x=5", "2024-01-01", "-2.00", "2.50", "0.0.0"]
    kept = ["34", "34", "34", "34", "1" + "0" * 22 + "1", "x=5", "2024-01-01", "-2", "2.50", "0.0.0"]
    assert [answers.ground_truth(value) for value in given] == kept
    whole = [answers.whole_number(text, 999) for text in ("073", "73.0", " 73 ", "0", "999")]
    assert whole == ["73", "73", "73", "0", "999"]
    for text in ("7_3", "1e2", "x", "-1", "1000", "2.5", "336^\\circ", "", "٧٣", "7 3", "1" * 5000):
        with pytest.raises(ValueError, match="not a whole number of 0 to 999"):
            answers.whole_number(text, 999)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *[(None, "is missing"), (" \n", "is empty"), ("nan", "not an answer"), ("[INVALID]", "not an answer")],
        *[(True, "type bool"), (math.nan, "type float"), (["34"], "type list")],
        *[("1\n2", "has a line break"), ("1" * 101, "longer than 100"), ("x\ud800", "surrogate")],
    ],
)
def test_ground_truths_that_nobody_can_reach(value: Any, reason: str):
    with pytest.raises(ValueError, match=reason):
        answers.ground_truth(value)


def corrupted(rng: random.Random, form: str, characters: str) -> str:
    """``form`` with one to three characters put in, put in place of others, or taken out."""
    text = form
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice([*characters, ""]) + text[place + rng.randint(0, 2) :]
    return text


def value_by_python(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def test_corrupted_numbers_have_the_value_that_python_reads_or_none(count: int = 3000):
    """Another reader of the same notation agrees; and a corrupted form of any kind is read in plain digits or not."""
    rng = random.Random(27)
    for _ in range(count):
        text = corrupted(rng, rng.choice(["1234", "-73", "0.25", "3/4", "-1.5", "1e3", "12/5"]), "0123456789.-/ex")
        found, right = answers.number(text), value_by_python(text.rstrip("."))
        unread = found is None and not (right is not None and re.fullmatch(r"-?\d+(\.\d+)?", text))
        assert found == right or unread, text
        text = corrupted(rng, rng.choice(PAIRS)[0], "019.,-+/*^_{}()$%\\e −\u2009½²")
        answers.number(text)
        last = answers.last_number(text)
        assert last is None or answers.PLAIN_TRUTH.fullmatch(last)


def test_reading_is_quick_whatever_is_repeated():
    for piece in ("9", "-", "1 ", "1,000", "\\boxed{", "*", "$", "{", "1/", "\\frac{", "answer", "=", "`"):
        text, start = piece * 3000, time.process_time()
        for response in (text, "Answer: " + text, text + "5", f"<answer>{text}</answer>"):
            answers.final(response, "5")
            answers.final(response, "cat")
            answers.stated(response)
        assert time.process_time() - start < 3, piece
