"""Responses to scores: the function that verl's validation calls, called as it calls it."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cppo_verl.evaluation import EvaluationError
from cppo_verl.evaluation.problems import Problem
from cppo_verl.evaluation.settings import Reward
from cppo_verl.evaluation.store import Response

Scorer = Callable[[Problem, str], Any]


@dataclass(frozen=True)
class Score:
    """The verdict on a response; ``acc`` is None where the scorer gives none, ``error`` what it raised.

    A response whose scoring failed counts as wrong (acc 0), as in verl's validation, and has no reward.
    """

    response: Response
    reward: float | None
    acc: float | None
    pred: str | None = None
    error: str | None = None


def load(reward: Reward) -> Scorer:
    """The custom function, or verl's ``default_compute_score``.

    Raises:
        EvaluationError: the file or the function in it does not exist, or the file cannot be imported.
    """
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.reward_score import default_compute_score

    function: Any = default_compute_score
    if reward.path:
        named = {"path": reward.path, "name": reward.name, "reward_kwargs": reward.kwargs}
        try:
            function = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": named}}))
        except (OSError, RuntimeError, AttributeError, ValueError) as error:
            raise EvaluationError(f"--reward-file {reward.path}, --reward-name {reward.name}: {error}") from error

    def score(problem: Problem, text: str) -> Any:
        verdict = function(
            data_source=problem.data_source,
            solution_str=text,
            ground_truth=problem.ground_truth,
            extra_info={**problem.extra_info, "num_turns": 2, "rollout_reward_scores": {}},
        )
        return asyncio.run(verdict) if inspect.iscoroutine(verdict) else verdict

    return score


def check(scorer: Scorer, problems: Sequence[Problem]) -> None:
    """Fail before any generation where a benchmark has no scorer.

    Raises:
        EvaluationError: the scorer does not know a data source.
    """
    for problem in {p.data_source: p for p in problems}.values():
        try:
            scorer(problem, "")
        except NotImplementedError:
            raise EvaluationError(
                f"verl has no scorer for data_source {problem.data_source!r}: give one in --reward-file"
            ) from None
        except Exception:  # an empty response may be more than a scorer can take; real ones are counted
            continue


def score(scorer: Scorer, problem: Problem, response: Response) -> Score:
    """Score one response; what the scorer raises is kept in ``error``."""
    try:
        verdict = scorer(problem, response.text)
        if not isinstance(verdict, dict):
            return Score(response, float(verdict), float(verdict))
        acc, pred = verdict.get("acc"), verdict.get("pred")
        return Score(
            response,
            float(verdict["score"]),
            None if acc is None else float(acc),
            None if pred is None else str(pred),
        )
    except Exception as error:
        return Score(response, None, 0.0, error=f"{type(error).__name__}: {error}"[:200])
