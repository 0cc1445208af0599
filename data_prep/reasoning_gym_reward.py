"""reasoning-gym's own scorers as a verl reward: 1 for full marks and 0 for anything less; partial marks are reported.

    reward.custom_reward_function.path=data_prep/reasoning_gym_reward.py
    reward.custom_reward_function.name=compute_score

Scorers give partial marks to a text that merely contains the answer, so only full marks count as right: a 1, to the bit
(spell_backward adds up sevenths to a little more than 1 for an answer with a letter too many). What is scored is the
answer read from the response, by this rule:

1. the content of the last `<answer>...</answer>`;
2. without one, what follows the last `Answer:`;
3. without either, the whole response.

Where the right answer is a number, the last number of that text counts, and the text itself where it has none. A minus
sign belongs to a number unless a digit, letter or closing bracket stands right before it; commas between groups of
three digits are left out.

Some scorers evaluate what the model wrote as Python or as sympy. Those run in processes of their own with limits of
time and memory (reasoning_gym_server.py); an answer that runs into one gets no marks and is counted as ``timed_out``.
"""

import json
import queue
import re
from functools import cache
from typing import Any

from data_prep.math_reward import Server, printable

FULL = 1.0
TAIL = 8192  # characters of a response that are looked at
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MARKED = re.compile(r"^.*\bAnswer:", re.DOTALL)
NUMBER = re.compile(r"(?:(?<![\w)\]])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")
WHOLE_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?")
# Scorers that evaluate a response (a test compares with the package's source)
EVALUATING = frozenset(
    ("codeio", "countdown", "binary_matrix", "intermediate_integration", "n_queens", "polynomial_multiplication")
    + ("puzzle24", "simple_integration", "spiral_matrix", "string_insertion")
)
SERVERS = 2


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    time_limit: float = 2.0,
    memory_limit_mib: int = 512,
    **kwargs: Any,
) -> dict[str, Any]:
    """Score a response.

    Args:
        data_source, kwargs: not used; verl passes them.
        solution_str: the decoded response; anything but text scores as an empty response.
        ground_truth: the answer as text; only whether it is a number matters here.
        extra_info: has ``entry``, the item as JSON, from data_prep/reasoning_gym_data.py.
        time_limit: seconds, and ``memory_limit_mib`` MiB beyond what Python takes: of scorers that evaluate.

    Returns:
        score (1.0 or 0.0), acc (bool), partial (the scorer's marks, 0 to 1), pred (the answer read, as printable text)
        and timed_out (bool).

    Raises:
        ValueError: rows that are not from reasoning_gym_data.
    """
    if not extra_info or "entry" not in extra_info:
        raise ValueError(
            f"data_source = {data_source}: rows without extra_info.entry; make them with data_prep.reasoning_gym_data"
        )
    answer = read_answer(solution_str if isinstance(solution_str, str) else "", str(ground_truth))
    marks, bounded = score(answer, extra_info["entry"], time_limit, memory_limit_mib)
    right = marks == FULL
    return {
        "score": float(right),
        "acc": right,
        "partial": min(FULL, max(0.0, marks)),
        "pred": printable(answer[-100:]),
        "timed_out": bounded,
    }


def read_answer(response: str, truth: str) -> str:
    """The answer in a response, by the rule above."""
    text = response[-TAIL:]
    if tagged := TAGGED.findall(text):
        text = tagged[-1]
    elif marked := MARKED.match(text):
        text = text[marked.end() :]
    text = text.strip()
    if WHOLE_NUMBER.fullmatch(truth.strip()) and (numbers := NUMBER.findall(text)):
        return numbers[-1].replace(",", "")
    return text


def score(answer: str, entry_json: str, time_limit: float = 2.0, memory_limit_mib: int = 512) -> tuple[float, bool]:
    """The scorer's marks, ``FULL`` for a right answer and 0 where it fails, and whether it ran into a limit."""
    entry = json.loads(entry_json)
    task = entry["metadata"]["source_dataset"]
    if task not in EVALUATING:
        return marks_of(task, answer, entry), False
    request = {"answer": answer, "entry": entry, "time_limit": time_limit, "memory_limit_mib": memory_limit_mib}
    server = _idle.get()
    try:
        said = server.ask(request)
    finally:
        _idle.put(server)
    return (0.0, True) if said == "bounded" else (float(said), False)


def marks_of(task: str, answer: str, entry: dict[str, Any]) -> float:
    """The scorer's marks, in this process; 0 where it raises."""
    try:
        return float(_scorer(task)(answer=answer, entry=entry))
    except Exception:  # a scorer that trips over an answer has not found it right
        return 0.0


@cache
def _scorer(task: str) -> Any:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


_idle: "queue.LifoQueue[Server]" = queue.LifoQueue()
for _ in range(SERVERS):
    _idle.put(Server("reasoning_gym_server.py"))
