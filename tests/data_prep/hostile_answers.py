"""Completions that a policy could write to hang, crash, swell or trick whoever scores them."""

LONG = 1_000_000
ANSWERS = [
    "^".join("975" * 20),
    "**".join("379"),
    f"${'9^{' * 40}9{'}' * 40}$",
    "99999999999!",
    "999999!!!!!",
    *(piece * LONG for piece in ("9", "(", "{", "\\frac", " ", "Answer:")),
    *(f"{left * depth}5{right * depth}" for depth in (20, 20_000) for left, right in (("(", ")"), ("\\sqrt{", "}"))),
    "\\frac{\\boxed{\\sqrt[}{$\\text{^_\\\\5x=\\left(" * 9,
    "5" + "\0" * 400 + "\nAnswer: \0",
    "".join(map(chr, range(0xD800, 0xD880))),  # halves of surrogate pairs
    "\u202e\u0663\uff15\u2075\U0001d7d3" * 10,
    "".join(map(chr, range(1, 0x2FF))),
    *("$\\binom{10^{12}}{10^{11}}$", "$\\sum_{n=1}^{10^{12}} n^n$", "$\\int_0^{9^9} x^{x^x} dx$"),
    "\\{" + ",".join("0123456789" * 12) + "\\}",
]
RESPONSES = [
    "\\boxed{" + "\\frac" * LONG,
    "\\" * LONG + "\nAnswer: 7",
    "Answer: 5\n" * 50_000 + "Answer:\n\n\n",
]


def hostile_completions(path: str) -> list[str]:
    """None is a correct answer of 5 unless by its value; some create ``path`` if anything evaluates them as Python."""
    calls = [
        f"__import__('os').system('touch {path}')",
        f"open('{path}','w')",
        f"().__class__.__bases__[0].__subclasses__() or open('{path}','w')",
        f'exec(\'open("{path}","w")\')',
    ]
    frames = ["{}", "\\text{{{}}}", "\\operatorname{{{}}}", "1+{}"]
    code = [frame.format(call) for call in calls for frame in frames]
    return ["Answer: " + answer for answer in code + ANSWERS] + RESPONSES
