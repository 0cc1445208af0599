"""The text of each token of a response, for any tokenizer.

What a token says depends on what stands before it: a space at the start goes, bytes become a character only together.
So the tokens that follow are decoded behind those that had a text last, and a character goes to the token that
completes it.
"""

from collections.abc import Sequence
from typing import Any

PATIENCE = 8  # tokens without a whole character before they get what they have: broken bytes


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One string a token, special tokens included; together the response's text.

    A token that ends inside a character gets "", and the one that completes it the whole character.
    """

    def decoded(begin: int, end: int) -> str:
        return tokenizer.decode(list(ids[begin:end]), skip_special_tokens=False)

    found: list[str] = []
    begin = told = 0  # the tokens before ``told`` have their text; those from ``begin`` to there are ``context``
    context = ""
    for end in range(1, len(ids) + 1):
        new = decoded(begin, end)[len(context) :]
        if (not new or new.endswith("\N{REPLACEMENT CHARACTER}")) and end - told <= PATIENCE:
            found.append("")
            continue
        found.append(new)
        begin, told = told, end
        context = decoded(begin, told)
    if told < len(ids):
        found[-1] += decoded(begin, len(ids))[len(context) :]
    return found
