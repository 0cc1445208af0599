"""reasoning-gym's scorers, with a grammar before every evaluator; runs in a process without rights (sandbox.py).

Nine of the scorers give what a model wrote to Python's `eval`, or to sympy's parser, which calls it. In this process
these names are replaced: what is no literal and no arithmetic is refused before anything evaluates it, which for the
scorer is an answer that it cannot read.
"""

import ast
import json
import re
import sys
from functools import cache
from typing import Any

LONGEST = 10_000  # characters of an expression
OWN_TEXT = "reasoning_gym.arithmetic.bitwise_arithmetic"  # evaluates its question, which is its own
WORDS = "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth asinh acosh atanh"
FUNCTIONS = frozenset(f"{WORDS} exp log ln sqrt Abs abs sign pi E".split())
TOKEN = re.compile(r"\s+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|\*\*|[-+*/(),]|(?P<name>[A-Za-z]+)")
OPERATORS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})

ITEM = '{"answer": "2", "metadata": {"numbers": [1, 1], "target": 2}}'
TRIAL = ("marks", [[["countdown", "1 + 1", ITEM], ["countdown", "1 + 2", ITEM]]], [1.0, 0.05])


class RefusedText(ValueError):
    """Text that is no arithmetic."""


def prepare() -> None:
    """Import reasoning-gym and put the grammars before its evaluators, in this process."""
    import reasoning_gym
    import sympy

    parse = sympy.parse_expr

    def parse_expression(text: str, *args: Any, **kwargs: Any) -> Any:
        return parse(expression(text), *args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith(reasoning_gym.__name__):
            if name != OWN_TEXT:
                vars(module).update(eval=ast.literal_eval, exec=refuse)
            if getattr(module, "parse_expr", None) is parse:
                vars(module)["parse_expr"] = parse_expression
    vars(sympy)["parse_expr"] = parse_expression
    marks(TRIAL[1][0])  # builds what the first scoring builds


def marks(answers: list[list[str]]) -> list[float]:
    """The scorer's marks for each (task, answer, item as JSON); 0 where it raises."""
    import reasoning_gym

    scorer_of, given = cache(reasoning_gym.get_score_answer_fn), []
    for task, answer, item in answers:
        scorer, entry = scorer_of(task), json.loads(item)
        try:
            given.append(float(scorer(answer=answer, entry=entry)))
        except MemoryError:
            raise
        except Exception:  # a scorer that trips over an answer has not found it right
            given.append(0.0)
    return given


def expression(text: str) -> str:
    """``text``, with `*`, `/` and `-` for their typographic signs, if all of it is numbers, operators, functions of
    ``FUNCTIONS`` and names of one letter.

    Raises:
        RefusedText: it is not.
    """
    text, place = text.translate(OPERATORS), 0
    while place < len(text):
        token = TOKEN.match(text, place)
        if token is None or len(text) > LONGEST:
            raise RefusedText(text[place : place + 20])
        if (name := token["name"]) and len(name) > 1 and name not in FUNCTIONS:
            raise RefusedText(name)
        place = token.end()
    return text


def refuse(*args: Any) -> None:
    """In place of `exec`."""
    raise RefusedText("a program")
