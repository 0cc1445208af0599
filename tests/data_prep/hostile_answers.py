"""Completions that a policy could write to hang, crash, swell or trick whoever scores them."""

import random
from collections.abc import Callable
from itertools import cycle, islice

Make = Callable[[random.Random], str]


def _tower(rng: random.Random) -> str:
    sign = rng.choice(["^", "**"])
    return "Answer: " + sign.join(rng.choice("3579") for _ in range(rng.randint(3, 60)))


def _braced_tower(rng: random.Random) -> str:
    depth = rng.randint(3, 40)
    return f"Answer: ${'9^{' * depth}9{'}' * depth}$"


def _factorials(rng: random.Random) -> str:
    return f"Answer: {rng.randint(10**7, 10**12)}{'!' * rng.randint(1, 5)}"


def _megabyte(rng: random.Random) -> str:
    return rng.choice(["Answer: ", "\\boxed{", "$"]) + rng.choice(["9", "(", "{", "\\frac", " ", "Answer:"]) * 1_000_000


def _megabyte_then_answer(rng: random.Random) -> str:
    return rng.choice("x{$\\\n") * 1_500_000 + "\nAnswer: " + str(rng.randint(0, 999))


def _unbalanced(rng: random.Random) -> str:
    parts = ["\\frac{", "\\boxed{", "\\sqrt[", "\\left(", "}", "{", "$", "\\text{", "^", "_", "\\\\", "5", "x", "="]
    return "Answer: " + "".join(rng.choices(parts, k=rng.randint(1, 200)))


def _nested(rng: random.Random) -> str:
    depth = rng.choice([20, 200, 20_000])
    left, right = rng.choice([("(", ")"), ("\\sqrt{", "}"), ("\\frac{1}{", "}"), ("\\boxed{", "}"), ("\\{", "\\}")])
    return f"Answer: {left * depth}5{right * depth}"


def _null_bytes(rng: random.Random) -> str:
    return "Answer: 5" + "\0" * rng.randint(1, 400) + rng.choice(["", "5", "\nAnswer: \0"])


def _surrogates(rng: random.Random) -> str:
    return "Answer: " + "".join(chr(rng.randint(0xD800, 0xDFFF)) for _ in range(rng.randint(1, 100)))


def _unicode(rng: random.Random) -> str:
    return "Answer: " + "".join(chr(rng.choice([0x202E, 0x0663, 0xFF15, 0x2075, 0x1D7D3])) for _ in range(50))


def _noise(rng: random.Random) -> str:
    return "Answer: " + "".join(chr(rng.randint(1, 0x2FF)) for _ in range(rng.randint(0, 500)))


def _many_answers(rng: random.Random) -> str:
    return "Answer: 5\n" * rng.randint(1, 50_000) + rng.choice(["Answer:", "answer : 6", "Answer:\n\n\n"])


def _huge_combinatorics(rng: random.Random) -> str:
    body = [
        "\\binom{10^{12}}{10^{11}}",
        "\\sum_{n=1}^{10^{12}} n^n",
        "\\prod_{k=1}^{10^9} k",
        "\\int_0^{9^9} x^{x^x} dx",
    ]
    return f"Answer: ${rng.choice(body)}$"


def _sets(rng: random.Random) -> str:
    return "Answer: \\{" + ",".join(str(rng.randint(0, 9)) for _ in range(rng.randint(1, 120))) + "\\}"


def hostile_code(path: str) -> list[str]:
    """Answers that create ``path`` if anything evaluates them as Python."""
    calls = [
        f"__import__('os').system('touch {path}')",
        f"open('{path}','w')",
        f"().__class__.__bases__[0].__subclasses__() or open('{path}','w')",
        f'exec(\'open("{path}","w")\')',
    ]
    frames = ["{}", "${}$", "\\text{{{}}}", "\\operatorname{{{}}}", "1+{}", "\\boxed{{{}}}", "({})^2", "\\mathrm{{{}}}"]
    return ["Answer: " + frame.format(call) for call in calls for frame in frames]


KINDS: tuple[Make, ...] = (
    _tower,
    _braced_tower,
    _factorials,
    _megabyte,
    _megabyte_then_answer,
    _unbalanced,
    _nested,
    _null_bytes,
    _surrogates,
    _unicode,
    _noise,
    _many_answers,
    _huge_combinatorics,
    _sets,
)


def hostile_completions(count: int, seed: int, path: str) -> list[str]:
    """``count`` of them, every kind in turn, none of them a correct answer of 5 unless by its value."""
    rng = random.Random(seed)
    code = hostile_code(path)
    return code + [make(rng) for make in islice(cycle(KINDS), count - len(code))]
