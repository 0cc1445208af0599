"""The paper's scorer, verl's math_dapo, for data sources math_dapo, aime24, aime25, aime26; beside it math-verify.

    reward.custom_reward_function.path=data_prep/math_reward.py
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.math_verify=true      # optional, needs the package math-verify

Without the option, this is verl's math_dapo on the end of the response, to the bit. With it, every answer is compared a
second time by its value: as a number (answers.py), or by math-verify, in a process without rights (math_judge.py). An
answer counts as right if either says so; one that runs into a limit keeps the paper's verdict.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

from data_prep import answers
from data_prep.sandbox import Bounded, Sandbox

TAIL = 4096
LONGEST_TRUTH = 300
WORDS = re.compile(r"[A-Za-z ]{3,}")  # math-verify takes them for products of letters

_judge = Sandbox("data_prep.math_judge")


def _load_paper_scorer() -> Any:
    """verl's math_dapo, out of its own file: importing verl takes seconds."""
    (folder,) = importlib.util.find_spec("verl").submodule_search_locations  # type: ignore[union-attr,misc]
    file = Path(folder, "utils/reward_score/math_dapo.py")
    spec = importlib.util.spec_from_file_location("verl.utils.reward_score.math_dapo", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_math_dapo = _load_paper_scorer()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    math_verify: bool = False,
    time_limit: float = 2.0,
    memory_limit_mib: int = 1024,
    **kwargs: Any,
) -> dict[str, Any]:
    """Score the last `Answer:` of a response; anything but text scores as an empty response.

    Args:
        time_limit, memory_limit_mib: seconds of processor time, and MiB beyond the start, for math-verify.

    Returns:
        score (+1.0 or -1.0), acc (bool), pred (the answer that the paper's scorer read, as printable text), timed_out
        (bool: math-verify ran into a limit), paper (bool, the paper's verdict) and verified (bool, the verdict by
        value; None without ``math_verify`` and where ``timed_out``). verl logs means of all but pred for validation.

    Raises:
        ValueError: no response can be right. SandboxError: no math-verify, or no process without rights.
    """
    truth = ground_truth if isinstance(ground_truth, str) else answers.ground_truth(ground_truth)
    if len(truth) > LONGEST_TRUTH:
        raise ValueError(
            f"ground_truth has {len(truth)} characters: prepare the data with data_prep, which refuses them"
        )
    response = solution_str[-TAIL:] if isinstance(solution_str, str) else ""
    right, pred = paper_verdict(response, truth)
    verified, timed_out = None, False
    if math_verify:
        try:
            verified = _is_equal(truth, answers.stated(response), time_limit, memory_limit_mib)
        except Bounded:
            timed_out = True
    score = 1.0 if right or verified else -1.0
    verdicts = {"timed_out": timed_out, "paper": right, "verified": verified}
    return {"score": score, "acc": score > 0, "pred": answers.printable(pred)} | verdicts


def paper_verdict(response: str, truth: str) -> tuple[bool, str]:
    """Whether the response's last 300 characters answer with ``truth``, and the answer read, `[INVALID]` for none."""
    found = _math_dapo.compute_score(response, truth)
    return bool(found["acc"]), str(found["pred"])


def unreadable(ground_truth: Any) -> str:
    """Why no response can be right, or too many, for this ground truth; "" where the paper's scorer reads it."""
    try:
        text = answers.ground_truth(ground_truth)
    except ValueError as error:
        return str(error)
    if isinstance(ground_truth, str) and text != ground_truth.strip():  # of numbers, the text is what counts
        return f"is {ground_truth!r}, to which right answers are written {text!r}"
    right, pred = paper_verdict(f"Answer: {text}", text)
    return "" if right and pred else f"is {text}, of which the scorer reads {pred!r}"


def _is_equal(truth: str, answer: str, time_limit: float, memory_limit_mib: int) -> bool:
    """Whether an answer as written has the value of the truth."""
    truth, answer = answers.bare(truth), answers.bare(answer)
    if truth == answer or not answer:
        return bool(answer)
    if WORDS.fullmatch(answers.unwrapped(truth)):
        return answers.unwrapped(truth).casefold() == answers.unwrapped(answer).casefold()
    same = answers.equal_numbers(truth, answer)
    if same is not None:
        return same
    texts = [answers.latex(truth), answers.latex(answer)]
    return bool(_judge.call("are_equal", texts, time_limit, memory_limit_mib))
