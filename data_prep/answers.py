r"""Reads answers as models write them and ground truths as data sets keep them. Nothing here evaluates text.

`stated` and `final` find the answer in a response, `number` is the value of an answer that is one number, `last_number`
the last number of a longer text, and `ground_truth` the text of a truth. A number may be written with

- a sign: `-`, `−` (U+2212), `–` (U+2013), `minus`, also apart from it (`- 3`); between two numbers a minus is none;
- groups of three digits, apart by a comma, an apostrophe, a space of any width, `{,}` or `\,`;
- a fraction (`1/2`, `\frac{1}{2}`, `½`, `1 1/2`), an exponent (`1.5e3`, `1.5 \times 10^{3}`), `.3` for `0.3`;
- a unit, a currency, percent (50% is 50) or degrees around it, markdown, `$`, `\boxed{}` and `\text{}`.

A comma before other than three digits is no decimal point: `3,14` could be two numbers, so it is none.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

STATED_TAIL = 300  # characters of a response in which verl's math_dapo looks for `Answer:`
FINAL_TAIL = 8192
LONGEST_TRUTH = 100
LONGEST_NUMBER = 1000  # characters; Python reads no more than 4300 digits
LARGEST_EXPONENT = 400
LONGEST_SYMBOL = 3  # of a unit: cm, km², %
MOST_BOXES = 8

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
MARKED = re.compile(r"answer[\s*_]*[:：][\s*_]*", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
ROUND = re.compile(r"\((.*)\)|\{(.*)\}", re.DOTALL)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.DOTALL)
TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it|sf)|bm|boldsymbol|mbox)\s*\{(.*)\}", re.DOTALL)
MARKUP = re.compile(r"(\*{1,3}|`+|\$\$?)(?!\s)([^*`$]+)\1")
FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
PLAIN_TRUTH = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)

# What is written in several ways, to what the patterns below know; in this order.
SPELLINGS = [
    (re.compile(r"[\u2212\u2013\u2010\u2011\u2012\ufe63\uff0d]"), "-"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!:; ]|~|[\u00a0\u2007\u2009\u200a\u202f]|\\(?:thinspace|,)"), "\u2009"),
    (re.compile(r"\\(?=[%$])|\\(?:left|right|displaystyle|quad|qquad)(?![a-z])"), ""),
    (re.compile(r"\^?\s?\{?\\(?:circ|degree)(?![a-z])\}?"), "°"),
    (re.compile(r"\\(?:times|cdot)(?![a-z])|[×·⋅]"), "*"),
    (re.compile(r"\\approx(?![a-z])|≈"), "="),
    (re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?[\d,]+)\s*\}|(\d))\s*(?:\{\s*([\d,]+)\s*\}|(\d))"), r" \1\2/\3\4"),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|rm|it)|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\b(?:minus|negative)\s+(?=[.\d])", re.IGNORECASE), "- "),
]
THIN = "\u2009"
GROUPED = rf"\d{{1,3}}(?:[,'’{THIN}]\d{{3}})+(?!\d)"
SPACED = r"(?<![\d.,/*+^-])(?<![\d.,/*+^-]\s)\d{1,3}(?: \d{3})+(?!\d)"
WHOLE = rf"(?:{GROUPED}|{SPACED}|\d+)"
POWER = r"(?:e(?P<e>[-+]?\d+)(?![\w.])|\s?\*\s?10\s?(?:\^|\*\*)\s?\{?\s?(?P<power>[-+]?\d+)\s?\}?)"
NUMBER = re.compile(
    rf"(?P<ten>\b10(?:\^|\*\*)\{{?(?P<alone>[-+]?\d+)\}}?)|(?:(?P<whole>\d+) )?(?P<top>\d+)/(?P<bottom>\d+)"
    rf"|(?:(?P<digits>{WHOLE})(?P<decimals>\.\d+)?|(?<!\d)(?P<small>\.\d+))(?:/(?P<below>{WHOLE}))?{POWER}?",
    re.IGNORECASE,
)
UNITS = (
    "%|°|degrees?|percent|[kcmµn]?m|[km]?g|lbs?|oz|[mc]?l|m?s|h|hrs?|min|mph|km/h|m/s|seconds?|minutes?|hours?|days?|weeks?"
    "|months?|years?|(?:kilo|centi|milli)?met(?:er|re)s?|miles?|feet|foot|ft|inch(?:es)?|in|yards?|dollars?|cents?|euros?"
    "|units?|points?|people|students?|ways?|pounds?|grams?|liters?|litres?|radians?|rad|square units?|cubic units?"
)
AFTER = re.compile(
    rf"\s*(?P<unit>(?:(?:square|cubic|sq\.?)\s+)?(?:{UNITS})(?:\s?(?:\^?\{{?[23]\}}?|[²³]))?)?\.?", re.IGNORECASE
)
SAID = re.compile(r"(?:so\s+|thus,?\s+|hence,?\s+)?(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|:)\s*:?\s*", re.IGNORECASE)
SIGN = re.compile(r"\s*[-+]?\s*[$€£¥]?\s*")
SIGN_APART = re.compile(r"(?:^|[=:(\[{|,\n<>]|\b(?:is|are|equals|be))\s*$", re.IGNORECASE)
NO_SIGN = re.compile(r"[\w)\]}%°]$")
LATEX_NAMES = ["times", "cdot", "div", "le", "ge", "ne", "infty", "cup", "cap", "pi"]
# What may stand before an equals sign and a number: arithmetic, names without coefficients, f(2), a_{10}.
LEFT_SIDE = re.compile(r"[\d\s+*/^().-]*|[^\d,;]*|\s*\\?[A-Za-z]+\s?[_(]?\{?\d+\}?\)?\s*")
LATEX = [
    (re.compile(r"√\s*(?:\(([^()]*)\)|(\w+))"), r"\\sqrt{\1\2}"),
    *((re.compile(sign), rf"\\{command} ") for sign, command in zip("×·÷≤≥≠∞∪∩π", LATEX_NAMES, strict=True)),
    *((re.compile(sign), f"^{{{digit}}}") for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")),
    (re.compile("[−–]"), "-"),
]


def stated(response: str) -> str:
    """The answer as written where the paper's scorer looks: after the last `Answer:`, else in the last box; or ""."""
    tail = response[-STATED_TAIL:]
    for mark in reversed(list(MARKED.finditer(tail))):
        if answer := tail[mark.end() :].split("\n", 1)[0].strip():
            return answer
    return (last_box(tail) or "").strip()


def final(response: str, truth: str) -> str:
    """The answer in a response to a task of any kind, as text for a scorer that knows ``truth``.

    It is the content of the last `<answer>...</answer>`, else what follows the last `Answer:`, else the whole response;
    of that, the last box if there is one. Where ``truth`` is a number, the last number of it, in plain digits.
    """
    text = response[-FINAL_TAIL:]
    if tagged := TAGGED.findall(text):
        text = tagged[-1]
    elif marks := list(MARKED.finditer(text)):
        text = text[marks[-1].end() :]
    box = last_box(text)
    text = (text if box is None else box).strip()
    if PLAIN_TRUTH.fullmatch(truth.strip()):
        return last_number(text) or text
    return text if unwrapped(truth) != truth else unwrapped(text)


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{...}` whose braces are balanced."""
    for start in reversed([match.end() for match in BOX.finditer(text)][-MOST_BOXES:]):
        length = next((place for place, depth in enumerate(_depths(text[start:])) if depth == 0), None)
        if length is not None:
            return text[start + 1 : start + length]
    return None


def unwrapped(text: str, layers: Sequence[re.Pattern[str]] = (FENCE, MARKUP, BOXED, TEXT)) -> str:
    """``text`` without what is around the whole of it: a code fence, bold, backticks, `$`, a box, `\\text`."""
    for _ in range(LONGEST_TRUTH):
        found = next((match for layer in layers if (match := layer.fullmatch(text))), None)
        inner = found[found.lastindex or 0] if found else ""
        depths = [0, *_depths(inner)]
        if found is None or min(depths) < 0 or depths[-1] > 0:
            break
        text = inner.strip()
    return text


def bare(text: str) -> str:
    """``text`` without markup or box at its ends, whole or halved (`** 34`, `009\\]`), and without a full stop."""
    before = None
    while text != before:
        before = text
        text = unwrapped(text.strip().strip("*_`$").strip().rstrip(".,;。"), (FENCE, MARKUP, BOXED))
        text = text.removeprefix("\\[").removeprefix("\\(").removesuffix("\\]").removesuffix("\\)")
    return text


def number(text: str) -> Fraction | None:
    """The value of an answer that is one number and nothing else; None for anything else."""
    plain, _ = _written(text)
    return None if plain is None else Fraction(plain)


def equal_numbers(truth: str, answer: str) -> bool | None:
    """Whether two numbers have one value, and no two short units (`cm`, `m`); None where one is not a number."""
    (one, unit), (other, other_unit) = _written(truth), _written(answer)
    if one is None or other is None or "=" in truth:  # x = 5 is not y = 5
        return None
    differ = unit != other_unit and all(0 < len(name) <= LONGEST_SYMBOL for name in (unit, other_unit))
    return Fraction(one) == Fraction(other) and not differ


def latex(text: str) -> str:
    """``text`` with LaTeX for the signs of print: `√3` is `\\sqrt{3}`, `≤` is `\\le`."""
    for pattern, replacement in LATEX:
        text = pattern.sub(replacement, text)
    return text


def last_number(text: str) -> str | None:
    """The last number of a text in plain digits: sign, digits, point or `/`, exponent; None where it has none."""
    alone, _ = _written(text)
    if alone is not None:
        return alone
    spelled = _spelled(text)
    found = list(NUMBER.finditer(spelled))[-1:]
    return _plain(found[0], spelled[: found[0].start()]) if found else None


def whole_number(text: str, largest: int) -> str:
    """`073` or `73.0` as `73`; a ValueError for what is no whole number of 0..largest in digits (`7_3`, `1e2`)."""
    readable = len(text) <= LONGEST_TRUTH and re.fullmatch(r"\s*[0-9]+(?:\.0+)?\s*", text)
    value = Fraction(text.strip()) if readable else None
    if value is None or value > largest:
        raise ValueError(f"is {text}, not a whole number of 0 to {largest}")
    return str(value)


def ground_truth(value: Any) -> str:
    """A ground truth as the text that scorers compare with; `34`, `34.0` and `"34.0"` are all "34".

    Raises:
        ValueError: why no response could be right.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = checked_text(value).strip()
    if text.casefold() in ("nan", "none", "null", "[invalid]"):
        raise ValueError(f"is {text}, not an answer")
    if "\n" in text:
        raise ValueError("has a line break, and the scorer reads one line")
    if len(text) > LONGEST_TRUTH:
        raise ValueError(f"is longer than {LONGEST_TRUTH} characters, and the scorer reads the end of a response only")
    return re.sub(r"^([-+]?\d+)\.0+$", r"\1", text)


def checked_text(value: Any) -> str:
    """``value`` if it is text that files and scorers can hold; a ValueError says why it is not."""
    if value is None:
        raise ValueError("is missing")
    if not isinstance(value, str):
        raise ValueError(f"is of type {type(value).__name__}, not text")
    if not value.strip():
        raise ValueError("is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("has half of a surrogate pair, which UTF-8 cannot hold") from error
    return value


def printable(text: str) -> str:
    """Text that any log, JSON file or transport takes: control characters and lone surrogates become U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _written(text: str) -> tuple[str | None, str]:
    """An answer that is one number, in plain digits, and its unit; None for what is no number."""
    if len(text) > LONGEST_NUMBER:
        return None, ""
    text = SAID.sub("", bare(_spelled(bare(text))), count=1)
    *left, text = text.split("=")
    if any(not LEFT_SIDE.fullmatch(side) or re.search(r"\b(?:or|and)\b", side) for side in left):
        return None, ""
    text = unwrapped(bare(text), (ROUND,)).strip("$€£¥ " + THIN)
    match = NUMBER.search(text)
    after = AFTER.fullmatch(text, match.end()) if match else None
    if match is None or after is None or not SIGN.fullmatch(text, 0, match.start()):
        return None, ""
    return _plain(match, text[: match.start()]), (after["unit"] or "").casefold()


def _spelled(text: str) -> str:
    """``text`` with one spelling for digits, signs, separators, fractions and commands."""
    text = "".join(character if character.isascii() else _ascii(character) for character in text)
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def _ascii(character: str) -> str:
    """A decimal digit of any script as ASCII, `½` as ` 1/2`; superscripts and all else as they are."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return character


def _plain(found: re.Match[str], before: str) -> str | None:
    """A number in plain digits, which Fraction reads; ``before`` is the text that it follows."""
    parts = {name: text or "" for name, text in found.groupdict().items()}
    exponent = parts["alone"] or parts["e"] or parts["power"]
    if exponent and abs(int(exponent[:9])) > LARGEST_EXPONENT or len(found[0]) > LONGEST_NUMBER:
        return None
    if parts["top"]:
        whole, top, bottom = int(parts["whole"] or 0), int(parts["top"]), int(parts["bottom"])
        if parts["whole"] and top >= bottom:  # 4 10/3 is no mixed number
            return None
        text = f"{whole * bottom + top}/{bottom}"
    elif parts["ten"]:
        bottom, text = 1, "1"
    else:
        digits, below = (re.sub(r"\D", "", parts[name]) for name in ("digits", "below"))  # without groups
        bottom = int(below or 1)
        text = (digits or "0") + (parts["decimals"] or parts["small"]) + ("/" + below if below else "")
    if bottom == 0 or "/" in text and ("." in text or exponent):
        return None
    return ("-" if _is_negative(before) else "") + text + (f"e{int(exponent)}" if exponent else "")


def _is_negative(before: str) -> bool:
    """Whether the text before a number ends with its sign; a minus after a number or a bracket is an operation."""
    trimmed = re.sub(r"[\s$€£¥]{1,4}$", "", before[-64:])
    if not trimmed.endswith("-"):
        return False
    rest = trimmed[:-1]
    return not NO_SIGN.search(rest) if trimmed == before[-64:] else bool(SIGN_APART.search(rest))


def _depths(text: str) -> Iterator[int]:
    """How many braces are open after each character."""
    return accumulate((character == "{") - (character == "}") for character in text)
