"""Compares two answers with math-verify; math_reward.py calls it in a process without rights (sandbox.py)."""

import logging
import re
from itertools import zip_longest

import sympy
from math_verify.grader import verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig, parse
from sympy.core.function import AppliedUndef

TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())
DIGITS = 60  # of a numeric comparison
NAMES = (sympy.Symbol, AppliedUndef)  # x, f(2)
TRIAL = ("are_equal", ["\\sqrt{4} + 1", "\\frac{6}{2}"], True)
SUBSCRIPT = re.compile(r"\d\s*_")  # a number to a base, which math-verify takes for the number


def prepare() -> None:
    """Build what the first comparison builds: regexes, parser, tables."""
    logging.disable()
    are_equal("1", "\\frac{2}{2} + x")
    are_equal("\\sqrt{2}", "\\{1, (0, 1]\\}")


def are_equal(truth: str, answer: str) -> bool:
    """math-verify's verdict on two answers as written, but where it is too lenient.

    It takes numbers for equal that differ by less than 1e-15, or 1e-6 where one has a decimal point, `(0, 1)` for
    `{0, 1}`, and drops subscripts.
    """
    if SUBSCRIPT.search(answer) and not SUBSCRIPT.search(truth):
        return False
    gold, said = (parse(f"\\boxed{{{text}}}", TARGETS, parsing_timeout=None) for text in (truth, answer))
    if not (gold and said and verify(gold, said, timeout_seconds=None)):
        return False
    return _agree(gold[0], said[0])


def _agree(gold: object, said: object) -> bool:
    """Whether two expressions that math-verify takes for equal are of one kind, and their numbers the same."""
    if isinstance(gold, sympy.Eq) != isinstance(said, sympy.Eq):
        gold, said = (_named(side) for side in (gold, said))
    if not isinstance(gold, sympy.Basic) or not isinstance(said, sympy.Basic):
        return True
    if isinstance(gold, sympy.Eq) != isinstance(said, sympy.Eq):
        return False
    finite = [isinstance(side, sympy.FiniteSet) for side in (gold, said)]
    ranges = [isinstance(side, (sympy.Interval, sympy.Tuple)) for side in (gold, said)]
    if finite[0] and ranges[1] or finite[1] and ranges[0]:
        return False
    if any(finite) or any(ranges):
        pairs = zip_longest(_members(gold), _members(said))
        return all(one is not None and other is not None and _agree(one, other) for one, other in pairs)
    if isinstance(gold, sympy.Expr) and isinstance(said, sympy.Expr):
        symbols = sorted(gold.free_symbols | said.free_symbols, key=str)
        place = {symbol: sympy.Rational(17 + 4 * i, 10) for i, symbol in enumerate(symbols)}
        one, other = gold.subs(place), said.subs(place)
        return _same_number(one, other) if one.is_number and other.is_number else True
    return True


def _named(side: object) -> object:
    """The right side of an equation of a name or number: 2x = 34 does not say 34. Anything else as it is."""
    if isinstance(side, sympy.Eq) and (side.lhs.is_number or isinstance(side.lhs, NAMES)):
        return side.rhs
    return side


def _members(side: sympy.Basic) -> list[sympy.Basic]:
    """Elements or ends; those of a set by size, since it has no order of its own."""
    members = [arg for arg in side.args if isinstance(arg, sympy.Expr)]
    if isinstance(side, sympy.FiniteSet) and all(arg.is_number and arg.is_real for arg in members):
        members.sort(key=lambda arg: arg.evalf(DIGITS))
    return members


def _same_number(one: sympy.Expr, other: sympy.Expr) -> bool:
    """Equal to 40 digits, a decimal fraction being what it says; infinities by identity."""
    exact = [side.replace(lambda e: e.is_Float, lambda e: sympy.Rational(str(e))) for side in (one, other)]
    difference, size = (exact[0] - exact[1]).evalf(DIGITS), abs(exact[0]).evalf(DIGITS)
    if not (difference.is_number and size.is_finite):
        return bool(one == other)
    return bool(abs(difference) <= size * sympy.Rational(1, 10**40))
