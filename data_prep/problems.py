"""A maths problem and its answer, checked, and the prompt that asks for it in the form verl's math_dapo scorer reads.

The scorer takes the last `Answer:` of a response, up to the end of that line. Every prompt gets the same wording;
prompts that come with an instruction before and a reminder after the problem are unwrapped first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data_prep import answers, math_reward
from data_prep.sources import DataError, Record

INSTRUCTION = (
    "Reason through the math problem below step by step. Close your response with a line of the form Answer: $Answer "
    "(no quotation marks), where $Answer is the final answer to the problem."
)
REMINDER = 'The last line has to start with "Answer:" and to contain nothing but the answer after it.'
MARK = "Answer:"
GAP = "\n\n"

COLUMNS = {  # names by role
    "prompt": ("prompt", "problem", "question", "Problem"),
    "answer": ("reward_model.ground_truth", "answer", "Answer"),
}

_unreadable = lru_cache(1 << 16)(math_reward.unreadable)


class BadRow(DataError):
    """A row that cannot be used; the message has file, row, column and reason."""


@dataclass(frozen=True)
class Problem:
    """What one row says; ``prompt`` is its text as found, ``text`` the problem without instruction and reminder."""

    prompt: str
    text: str
    answer: str


def match_columns(found: Sequence[str], given: Mapping[str, str], file: str) -> dict[str, str]:
    """Columns for prompt and answer: those ``given`` by role, else the one of the declared names that is there.

    It is a DataError where one has no column or more than one.
    """
    chosen, listed = {}, ", ".join(found) or "none"
    for role, names in COLUMNS.items():
        wanted = [given[role]] if role in given else names
        there = [name for name in wanted if name in found]
        if len(there) != 1:
            raise DataError(
                f"{file}: {len(there)} columns could be the {role} ({' or '.join(there or wanted)}); "
                f"columns found: {listed}; say which with --columns {role}=NAME"
            )
        chosen[role] = there[0]
    return chosen


def read_problem(record: Record, columns: Mapping[str, str], file: str, largest: int | None = None) -> Problem:
    """Check one record. With ``largest``, the answer has to be a whole number of 0..largest, and 073 becomes 73.

    Raises:
        BadRow: prompt or answer is missing, empty, of a wrong type, or cannot be scored.
    """
    column = "(the line)"
    try:
        if record.fault:
            raise ValueError(record.fault)
        column = columns["prompt"]
        prompt = prompt_text(record.values.get(column))
        column = columns["answer"]
        answer = answers.ground_truth(record.values.get(column))
        if largest is not None:
            answer = answers.whole_number(answer, largest)
        elif fault := _unreadable(answer):
            raise ValueError(fault)
    except ValueError as error:
        raise BadRow(f"{file}: {record.place}: column {column}: {error}") from error
    return Problem(prompt, problem_of(prompt), answer)


def prompt_text(value: Any) -> str:
    """The text of a prompt given as text or as a list of exactly one user message; a ValueError says why not."""
    if isinstance(value, list):
        roles = [message.get("role") if isinstance(message, dict) else type(message).__name__ for message in value]
        if roles != ["user"]:
            raise ValueError(f"has the messages {roles}, not one of the user")
        value = value[0].get("content")
    return answers.checked_text(value)


def problem_of(prompt: str) -> str:
    """The problem inside a prompt whose first and last paragraphs speak of `Answer:`; any other prompt as it is."""
    head, _, rest = prompt.partition(GAP)
    body, _, tail = rest.rpartition(GAP)
    return body if body.strip() and MARK in head and MARK in tail else prompt


def ask(problem: Problem) -> str:
    """The prompt in our wording; a foreign prompt that asks for `Answer:` in a form we cannot unwrap stays as it is."""
    if MARK in problem.text and problem.text == problem.prompt:
        return problem.prompt
    return GAP.join([INSTRUCTION, problem.text, REMINDER])
