"""Completions that a policy could write to hang, crash, swell or trick whoever scores them."""

from itertools import cycle, islice
from random import Random

PARTS = ["\\frac{", "\\boxed{", "\\sqrt[", "\\left(", "}", "{", "$", "\\text{", "^", "_", "\\\\", "5", "x", "="]
BRACKETS = [("(", ")"), ("\\sqrt{", "}"), ("\\frac{1}{", "}"), ("\\boxed{", "}"), ("\\{", "\\}")]
LARGE = ["\\binom{10^{12}}{10^{11}}", "\\sum_{n=1}^{10^{12}} n^n", "\\prod_{k=1}^{10^9} k", "\\int_0^{9^9} x^{x^x} dx"]
STRANGE = [0x202E, 0x0663, 0xFF15, 0x2075, 0x1D7D3]


def _nested(rng: Random) -> str:
    depth, (left, right) = rng.choice([20, 200, 20_000]), rng.choice(BRACKETS)
    return f"{left * depth}5{right * depth}"


def _any_of(rng: Random, first: int, last: int, most: int) -> str:
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, most)))


# What follows "Answer: ", and whole responses.
ANSWERS = (
    lambda rng: rng.choice(["^", "**"]).join(rng.choice("3579") for _ in range(rng.randint(3, 60))),
    lambda rng: f"${'9^{' * (depth := rng.randint(3, 40))}9{'}' * depth}$",
    lambda rng: f"{rng.randint(10**7, 10**12)}{'!' * rng.randint(1, 5)}",
    lambda rng: rng.choice(["9", "(", "{", "\\frac", " ", "Answer:"]) * 1_000_000,
    lambda rng: "".join(rng.choices(PARTS, k=rng.randint(1, 200))),
    _nested,
    lambda rng: "5" + "\0" * rng.randint(1, 400) + rng.choice(["", "5", "\nAnswer: \0"]),
    lambda rng: _any_of(rng, 0xD800, 0xDFFF, 100),
    lambda rng: "".join(chr(rng.choice(STRANGE)) for _ in range(50)),
    lambda rng: _any_of(rng, 1, 0x2FF, 500),
    lambda rng: f"${rng.choice(LARGE)}$",
    lambda rng: "\\{" + ",".join(str(rng.randint(0, 9)) for _ in range(rng.randint(1, 120))) + "\\}",
)
RESPONSES = (
    lambda rng: rng.choice(["\\boxed{", "$"]) + rng.choice(["9", "(", "{", "\\frac"]) * 1_000_000,
    lambda rng: rng.choice("x{$\\\n") * 1_500_000 + f"\nAnswer: {rng.randint(0, 999)}",
    lambda rng: "Answer: 5\n" * rng.randint(1, 50_000) + rng.choice(["Answer:", "answer : 6", "Answer:\n\n\n"]),
)


def hostile_code(path: str) -> list[str]:
    """Answers that create ``path`` if anything evaluates them as Python."""
    calls = [
        f"__import__('os').system('touch {path}')",
        f"open('{path}','w')",
        f"().__class__.__bases__[0].__subclasses__() or open('{path}','w')",
        f'exec(\'open("{path}","w")\')',
    ]
    frames = ["{}", "\\text{{{}}}", "\\operatorname{{{}}}", "1+{}"]
    return ["Answer: " + frame.format(call) for call in calls for frame in frames]


def hostile_completions(count: int, seed: int, path: str) -> list[str]:
    """``count`` of them, every kind in turn, none of them a correct answer of 5 unless by its value."""
    rng = Random(seed)
    kinds = [lambda rng, make=make: "Answer: " + make(rng) for make in ANSWERS] + list(RESPONSES)
    code = hostile_code(path)
    return code + [make(rng) for make in islice(cycle(kinds), count - len(code))]
