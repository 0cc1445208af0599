"""The text of each token of a response, such that the pieces put together are the decoded response."""

from collections.abc import Sequence
from typing import Any


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One string a token, special tokens included.

    A token that ends inside a character gets "", and the one that completes it the whole character; what never becomes
    a character stands at the last token as the decoder writes it.

    Args:
        tokenizer: of transformers; one without a fast backend decodes each token by itself.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    found = [stream.step(backend, int(token)) or "" for token in ids]
    whole = backend.decode([int(token) for token in ids], skip_special_tokens=False)
    said = "".join(found)
    if found and len(whole) > len(said) and whole.startswith(said):
        found[-1] += whole[len(said) :]
    return found
