"""The text of each token of a response, such that the pieces put together are the decoded response, for any tokenizer.

What a token says depends on what stands around it: a space at the start goes, bytes become a character only together,
and one wrong byte can undo all that stand beside it. So the pieces are cut out of the decoded response, at the places
up to which the tokens so far agree with it.
"""

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

PATIENCE = 8  # tokens without an agreement before all tokens so far are decoded again


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One string a token, special tokens included; together ``tokenizer.decode(ids)``, replacement characters too.

    A token that ends inside a character gets "", and the one that completes it the whole character.
    """

    def decoded(begin: int, end: int) -> str:
        return tokenizer.decode(list(ids[begin:end]), skip_special_tokens=False)

    whole, found = decoded(0, len(ids)), [""] * len(ids)
    given = 0  # characters of ``whole`` that have a token
    # The tokens before ``settled`` agree with ``whole`` up to ``agreed``. A decoder treats a start differently, so
    # the next ones are decoded together with some of them, which alone are ``context``.
    begin = settled = agreed = 0
    context, patience, again = "", PATIENCE, 0
    for token in range(len(ids)):
        if token < again:
            continue
        if token - settled > patience:  # the start was inside of what belongs together
            begin, context, agreed, patience = 0, "", 0, patience + 1
        text = decoded(begin, token + 1)
        new = text[_common(context, text) :]
        reached = agreed + _common(new, whole, agreed)
        if reached > given:
            found[token], given = whole[given:reached], reached
        if reached < agreed + len(new):
            again = token + 1 + (token - settled) // (2 * PATIENCE)  # ever more rarely: the work grows with the length
            continue
        alone = decoded(settled, token + 1)
        begin, context = (settled, alone) if alone else (begin, text)
        settled, agreed = token + 1, reached
    if found:
        found[-1] += whole[given:]
    return found


def _common(start: str, text: str, at: int = 0) -> int:
    """How many characters of ``start`` stand in ``text`` from ``at`` on."""
    return len(start) if text.startswith(start, at) else len(commonprefix([start, text[at : at + len(start)]]))
