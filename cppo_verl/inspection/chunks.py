"""A response as bytes for a page: arrays of its tokens one after the other, deflated; and what a list shows of it.

Multi-byte numbers lie in planes (all lowest bytes, then all next ones, ...), little-endian, which deflates better.
Floats are rounded to as many bits as a reader is shown: 12 of the mantissa (four digits), 16 for what accumulates.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cppo_verl.recording.numbers import Numbers
from cppo_verl.recording.record import CAPPED, PREFIX, TOKEN, Look, Response

SHOWN_BITS = 12
SUMMED_BITS = 16
ALL_BITS = 23
LEVEL = 6  # of zlib: 9 takes three times as long for a percent

Named = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Chunk:
    """A packed response.

    Attributes:
        layout: (name, kind) of its arrays in their order; kind is ``bytes`` (as long as ``texts`` says), or a number of
            ``u1``, ``u4`` or ``f4`` for each token.
        texts: bytes of the prompt and of the response.
        data: the deflated arrays.
        facts: what the list of responses shows, by name.
    """

    layout: tuple[tuple[str, str], ...]
    texts: tuple[int, int]
    data: bytes
    facts: dict[str, Any]


def pack(response: Response, derived: Sequence[Numbers]) -> Chunk:
    """One response; ``derived`` has the numbers of each of its looks."""
    pieces = [piece.encode("utf-8", "replace") for piece in response.pieces]
    prompt, text = response.prompt.encode("utf-8", "replace"), b"".join(pieces)
    arrays = [*_response_arrays(response, pieces)]
    for number, (look, numbers) in enumerate(zip(response.looks, derived, strict=True)):
        arrays += [(f"{name}{number}", values) for name, values in _look_arrays(response, look, numbers)]
    data = zlib.compress(b"".join([prompt, text, *(_planes(values) for _, values in arrays)]), LEVEL)
    kinds = [(name, f"{values.dtype.kind}{values.dtype.itemsize}") for name, values in arrays]
    layout = (("prompt", "bytes"), ("text", "bytes"), *kinds)
    return Chunk(layout, (len(prompt), len(text)), data, _facts(response, derived))


def _response_arrays(response: Response, pieces: Sequence[bytes]) -> Iterator[Named]:
    yield "piece", np.array([len(piece) for piece in pieces], np.uint32)
    yield "id", response.token_ids.astype(np.uint32)
    if not response.mask.all():
        yield "own", response.mask.astype(np.uint8)
    yield "mu", rounded(response.log_mu, SHOWN_BITS)
    if response.log_rollout is not None:
        yield "rollout", rounded(response.log_rollout, SHOWN_BITS)
    if response.length and (response.advantages != response.advantages[0]).any():
        yield "A", rounded(response.advantages, ALL_BITS)


def _look_arrays(response: Response, look: Look, numbers: Numbers) -> Iterator[Named]:
    # pi less mu, not pi: near equal log-probs would lose the difference, which is what a reader looks for
    yield "moved", rounded(look.log_pi.astype(np.float64) - response.log_mu, SHOWN_BITS)
    yield "D", rounded(numbers.divergence, SHOWN_BITS)
    yield "gate", rounded(np.where(response.mask, look.gate, 1.0), SHOWN_BITS)
    yield "cause", np.where(response.mask, look.cause, 0).astype(np.uint8)
    if numbers.weight is not None:
        yield "w", rounded(numbers.weight, SHOWN_BITS)
    if numbers.spent is not None and numbers.allowance is not None:
        yield "S", rounded(numbers.spent, SUMMED_BITS)
        yield "limit", rounded(numbers.allowance, SUMMED_BITS)


def _facts(response: Response, derived: Sequence[Numbers]) -> dict[str, Any]:
    own, first = response.mask.astype(bool), response.first
    causes, advantages = np.where(own, first.cause, 0), response.advantages[own]
    return {
        "uid": response.uid,
        "sample": response.sample,
        "output": response.output,
        "length": response.length,
        "own": int(own.sum()),
        "masked": _six_digits((1 - first.gate[own].astype(np.float64).clip(0, 1)).sum()),
        **{name: int((causes == c).sum()) for name, c in (("token", TOKEN), ("prefix", PREFIX), ("capped", CAPPED))},
        "A": _six_digits(advantages.mean()) if len(advantages) else 0.0,
        "reward": _six_digits(response.reward),
        "behind": response.versions_behind,
        "largest": _six_digits(derived[0].divergence.max(initial=0.0)),
        "updates": [look.update for look in response.looks],
        "delta_b": [None if d.delta_b is None else _six_digits(d.delta_b) for d in derived],
    }


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Float32 with so many bits of the mantissa left, to the nearest; NaN and infinities stay what they are."""
    values = np.asarray(values, np.float32)
    if bits >= ALL_BITS:
        return values
    cut = ALL_BITS - bits
    whole = np.ascontiguousarray(values).view(np.uint32)
    kept = ((whole + np.uint32(1 << (cut - 1))) >> np.uint32(cut)) << np.uint32(cut)
    return np.where(np.isfinite(values), kept.view(np.float32), values)


def _planes(values: np.ndarray) -> bytes:
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    return little.view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _six_digits(value: float) -> float | None:
    """For JSON, which knows no NaN."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
