"""A response as bytes for a page: arrays of its tokens one after the other, deflated; and what a list shows of it.

Multi-byte numbers lie in planes (all lowest bytes, then all next ones, ...), little-endian, which deflates better.
Floats are rounded to as many bits as a reader is shown: 12 of the mantissa (four digits), 16 for what accumulates.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cppo_verl.recording.numbers import Numbers
from cppo_verl.recording.record import PREFIX, TOKEN, Look, Response

SHOWN_BITS, SUMMED_BITS, ALL_BITS = 12, 16, 23
LEVEL = 6  # of zlib: 9 takes three times as long for a percent

Layout = tuple[tuple[str, str], ...]


def pack(response: Response, derived: Sequence[Numbers]) -> tuple[bytes, Layout, list[int]]:
    """One response, of whose looks ``derived`` has the numbers: the deflated arrays; (name, kind) of each in its order,
    ``bytes`` or a number of ``u1``, ``u4`` or ``f4`` for each token; how many bytes prompt and response have."""
    pieces = [piece.encode("utf-8", "replace") for piece in response.pieces]
    texts = [response.prompt.encode("utf-8", "replace"), b"".join(pieces)]
    arrays = _arrays(response) | {"piece": np.array([len(piece) for piece in pieces], np.uint32)}
    for number, (look, numbers) in enumerate(zip(response.looks, derived, strict=True)):
        arrays |= {f"{name}{number}": values for name, values in _look_arrays(response, look, numbers).items()}
    data = zlib.compress(b"".join([*texts, *map(_planes, arrays.values())]), LEVEL)
    kinds = [(name, f"{values.dtype.kind}{values.dtype.itemsize}") for name, values in arrays.items()]
    return data, (("prompt", "bytes"), ("text", "bytes"), *kinds), [len(text) for text in texts]


def _arrays(response: Response) -> dict[str, np.ndarray]:
    arrays = {"id": response.token_ids.astype(np.uint32), "mu": rounded(response.log_mu)}
    if not response.mask.all():
        arrays["own"] = response.mask.astype(np.uint8)
    if response.log_rollout is not None:
        arrays["rollout"] = rounded(response.log_rollout)
    if response.length and (response.advantages != response.advantages[0]).any():
        arrays["A"] = rounded(response.advantages, ALL_BITS)
    return arrays


def _look_arrays(response: Response, look: Look, numbers: Numbers) -> dict[str, np.ndarray]:
    arrays = {
        # pi less mu, not pi: near equal log-probs would lose the difference, which is what a reader looks for
        "moved": rounded(look.log_pi.astype(np.float64) - response.log_mu),
        "D": rounded(numbers.divergence),
        "gate": rounded(np.where(response.mask, look.gate, 1.0)),
        "cause": np.where(response.mask, look.cause, 0).astype(np.uint8),
    }
    if numbers.weight is not None:
        arrays["w"] = rounded(numbers.weight)
    if numbers.spent is not None and numbers.allowance is not None:
        arrays |= {"S": rounded(numbers.spent, SUMMED_BITS), "limit": rounded(numbers.allowance, SUMMED_BITS)}
    return arrays


def facts(response: Response, derived: Sequence[Numbers]) -> dict[str, Any]:
    """What the list of responses shows, by name."""
    own, first = response.mask, response.first
    causes, advantages = first.cause[own], response.advantages[own]
    return {
        "uid": response.uid,
        "sample": response.sample,
        "output": response.output,
        "length": response.length,
        "own": int(own.sum()),
        "masked": _six_digits((1 - first.gate[own].astype(np.float64).clip(0, 1)).sum()),
        "token": int((causes == TOKEN).sum()),
        "prefix": int((causes == PREFIX).sum()),
        "A": _six_digits(advantages.mean()) if len(advantages) else 0.0,
        "reward": _six_digits(response.reward),
        "behind": response.versions_behind,
        "largest": _six_digits(derived[0].divergence.max(initial=0.0)),
        "updates": [look.update for look in response.looks],
        "delta_b": [None if d.delta_b is None else _six_digits(d.delta_b) for d in derived],
    }


def rounded(values: np.ndarray, bits: int = SHOWN_BITS) -> np.ndarray:
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
