"""Responses to scores: the function that verl's validation calls, called as it calls it."""

import asyncio
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cppo_verl.atomic import writable
from cppo_verl.evaluation import EvaluationError
from cppo_verl.evaluation.problems import Problem
from cppo_verl.evaluation.settings import Reward
from cppo_verl.evaluation.store import Response

DAPO = re.compile(r"math(_dapo(_reasoning)?)?|aime.*")  # sources that verl's own scorer gives to math_dapo
PROBES = ("Answer: {}", "\\boxed{{{}}}", "#### {}", "<answer>{}</answer>")


@dataclass(frozen=True)
class Score:
    """The verdict on a response; ``acc`` is None where the scorer gives none, ``error`` what it raised.

    A response whose scoring failed, or gave no finite number, counts as wrong (acc 0) and has no reward.
    """

    response: Response
    reward: float | None
    acc: float | None
    pred: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Scorer:
    """A ``function`` as verl calls it, whether it is verl's ``own``, and from its file ``unreadable``: why no response
    can be right for a ground truth, "" where one can."""

    function: Callable[..., Any]
    own: bool = False
    unreadable: Callable[[Any], str] = lambda truth: ""

    def __call__(self, problem: Problem, text: str) -> Any:
        """The verdict on a response, as the function gives it."""
        extra_info = {**problem.extra_info, "num_turns": 2, "rollout_reward_scores": {}}
        asked = {"data_source": problem.data_source, "ground_truth": problem.ground_truth, "extra_info": extra_info}
        verdict = self.function(solution_str=text, **asked)
        return asyncio.run(verdict) if inspect.iscoroutine(verdict) else verdict


def load(reward: Reward) -> Scorer:
    """The custom function (an EvaluationError where it cannot be imported), or verl's ``default_compute_score``."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.reward_score import default_compute_score

    if not reward.path:
        return Scorer(default_compute_score, own=True)
    named = {"path": reward.path, "name": reward.name, "reward_kwargs": reward.kwargs}
    try:
        function: Any = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": named}}))
    except (OSError, RuntimeError, AttributeError, ValueError) as error:
        raise EvaluationError(f"--reward-file {reward.path}, --reward-name {reward.name}: {error}") from error
    beside = getattr(function.args[0], "__globals__", {}).get("unreadable")
    return Scorer(function, unreadable=beside) if callable(beside) else Scorer(function)


def check(scorer: Scorer, problems: Sequence[Problem]) -> None:
    """Fail before any generation where no response could be right: an EvaluationError where the scorer does not know a
    data source, or cannot read a ground truth."""
    for problem in {p.data_source: p for p in problems}.values():
        try:
            scorer(problem, "")
        except NotImplementedError:
            raise EvaluationError(
                f"verl has no scorer for data_source {problem.data_source!r}: give one in --reward-file"
            ) from None
        except Exception:  # an empty response may be more than a scorer can take; real ones are counted
            continue
    for problem in problems:
        if why := scorer.unreadable(problem.ground_truth) or _unreadable(scorer, problem):
            raise EvaluationError(f"{problem.place}: ground_truth {why}; mend the file")


def _unreadable(scorer: Scorer, problem: Problem) -> str:
    """Why nothing can be right: a truth that is none, or that the scorer reads only when it is written plainly."""
    truth = problem.ground_truth
    if truth is None or truth == "" or truth != truth:
        return f"is {truth!r}"
    text = plain(truth)
    if problem.data_source.startswith("aime") and text.isdecimal():
        text = str(int(text))  # 073 is how AIME's answer sheets have it, and models write 73
    if text == truth and not (scorer.own and DAPO.fullmatch(problem.data_source)):
        return ""  # in which form an answer has to stand is not known
    if _is_right(scorer, problem, text):
        return ""
    if text == truth:
        return f"is {truth!r}, which math_dapo does not even find in 'Answer: {truth}'"
    plainly = _is_right(scorer, dataclasses.replace(problem, ground_truth=text), text)
    return f"is {truth!r}, for which right answers count as wrong: write the text {text!r}" if plainly else ""


def plain(truth: Any) -> str:
    """A ground truth as right answers are written: 34, 34.0, "34.0", ["34"] and the text of that list are "34"."""
    if isinstance(truth, str) and re.fullmatch(r'\s*\["[^"]*"\]\s*', truth):
        try:
            truth = json.loads(truth)
        except ValueError:
            return truth
    if isinstance(truth, (list, tuple)) and len(truth) == 1:
        return plain(truth[0])
    return re.sub(r"^\s*([-+]?\d+)\.0+\s*$", r"\1", str(truth))


def _is_right(scorer: Scorer, problem: Problem, answer: str) -> bool:
    found = (score(scorer, problem, Response(problem.row, 0, probe.format(answer), 0, "stop")) for probe in PROBES)
    return any((one.reward or 0.0 if one.acc is None else one.acc) > 0 for one in found)


def score(scorer: Callable[[Problem, str], Any], problem: Problem, response: Response) -> Score:
    """Score one response; what the scorer raises is kept in ``error``."""
    try:
        verdict = scorer(problem, response.text)
        if not isinstance(verdict, dict):
            verdict = {"score": verdict, "acc": verdict}
        reward, acc, pred = float(verdict["score"]), verdict.get("acc"), verdict.get("pred")
        acc = None if acc is None else float(acc)
        if not math.isfinite(reward) or not math.isfinite(acc or 0.0):
            raise ValueError(f"score {reward:g}, acc {acc}")
        return Score(response, reward, acc, None if pred is None else writable(str(pred)))
    except Exception as error:
        return Score(response, None, 0.0, error=writable(f"{type(error).__name__}: {error}"[:200]))
