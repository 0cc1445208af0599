"""A maths problem and its answer, checked, and the prompt that asks for it in the form verl's math_dapo scorer reads.

The scorer takes the last `Answer:` of a response, up to the end of that line. Every prompt gets the same wording;
prompts that come with an instruction before and a reminder after the problem are unwrapped first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep import answers, paper_scorer
from data_prep.sources import DataError, Record

INSTRUCTION = (
    "Reason through the math problem below step by step. Close your response with a line of the form Answer: $Answer "
    "(no quotation marks), where $Answer is the final answer to the problem."
)
REMINDER = 'The last line has to start with "Answer:" and to contain nothing but the answer after it.'
MARK = "Answer:"
GAP = "\n\n"

NAMES = {
    "prompt": ("prompt", "problem", "question", "Problem"),
    "answer": ("reward_model.ground_truth", "answer", "Answer"),
    "index": ("extra_info.index", "problem_idx", "id", "ID"),
}


class BadRow(DataError):
    """A row that cannot be used; the message has file, row, column and reason."""


@dataclass(frozen=True)
class Columns:
    """Where a file keeps prompt, answer and, if it has one, the row's own name; dotted where nested."""

    prompt: str
    answer: str
    index: str = ""

    @property
    def names(self) -> list[str]:
        """Those that are there."""
        return [name for name in (self.prompt, self.answer, self.index) if name]


@dataclass(frozen=True)
class Problem:
    """What one row says; ``prompt`` is its text as found, ``text`` the problem without instruction and reminder."""

    prompt: str
    text: str
    answer: str
    index: str


def match_columns(found: Sequence[str], given: Mapping[str, str], file: str) -> Columns:
    """Columns for prompt, answer and index: those ``given`` by role, else the one of the declared names that is there.

    It is a DataError where prompt or answer have no column or more than one.
    """
    listed = ", ".join(found) or "none"
    chosen = dict(given)
    for name in given.values():
        if name not in found:
            raise DataError(f"{file}: has no column {name}; columns found: {listed}")
    for role, names in NAMES.items():
        there = [name for name in names if name in found]
        if role in given or role == "index" and not there:
            continue
        if role != "index" and len(there) != 1:
            problem = f"{len(there)} columns could be the {role} ({' or '.join(there or names)})"
            raise DataError(f"{file}: {problem}; columns found: {listed}; say which with --columns {role}=NAME")
        chosen[role] = there[0]
    return Columns(**chosen)


def read_problem(record: Record, columns: Columns, file: str, largest: int | None = None) -> Problem:
    """Check one record. With ``largest``, the answer has to be a whole number of 0..largest, and 073 becomes 73.

    Raises:
        BadRow: prompt or answer is missing, empty, of a wrong type, or cannot be scored.
    """
    column = "(the line)"
    try:
        if record.fault:
            raise ValueError(record.fault)
        column = columns.prompt
        prompt = prompt_text(record.values[columns.prompt])
        column = columns.answer
        answer = answers.ground_truth(record.values[columns.answer])
        if largest is not None:
            answer = answers.whole_number(answer, largest)
        elif fault := paper_scorer.unreadable(answer):
            raise ValueError(fault)
    except ValueError as error:
        unit = "row" if file.endswith(".parquet") else "line"
        raise BadRow(f"{file}: {unit} {record.number}: column {column}: {error}") from error
    index = record.values.get(columns.index)
    return Problem(prompt, problem_of(prompt), answer, "" if index is None else str(index))


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
