"""A response as bytes for a page: arrays of its tokens one after the other, deflated; and what a list shows of it.

Multi-byte numbers lie in planes (all lowest bytes, then all next ones, ...), little-endian, which deflates better.
Floats are rounded to as many bits as a reader is shown: 12 of the mantissa (four digits), 16 for what accumulates.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from cppo_verl.recording.numbers import Numbers
from cppo_verl.recording.record import CAPPED, PREFIX, TOKEN, Look, Response

SHOWN_BITS = 12
SUMMED_BITS = 16
ALL_BITS = 23
LEVEL = 6  # of zlib: 9 takes three times as long for a percent


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


def pack(response: Response, derived: list[Numbers]) -> Chunk:
    """One response; ``derived`` has the numbers of each of its looks."""
    pieces = [_utf8(piece) for piece in response.pieces]
    prompt, text = _utf8(response.prompt), b"".join(pieces)
    arrays: list[tuple[str, str, bytes]] = [("prompt", "bytes", prompt), ("text", "bytes", text)]
    arrays.append(_numbers("piece", np.array([len(piece) for piece in pieces], np.uint32)))
    arrays.append(_numbers("id", response.token_ids.astype(np.uint32)))
    if not response.mask.all():
        arrays.append(_numbers("own", response.mask.astype(np.uint8)))
    arrays.append(_floats("mu", response.log_mu, SHOWN_BITS))
    if response.log_rollout is not None:
        arrays.append(_floats("rollout", response.log_rollout, SHOWN_BITS))
    if response.length and (response.advantages != response.advantages[0]).any():
        arrays.append(_floats("A", response.advantages, ALL_BITS))
    for number, (look, numbers) in enumerate(zip(response.looks, derived, strict=True)):
        arrays += _look_arrays(str(number), response, look, numbers)
    data = zlib.compress(b"".join(data for _, _, data in arrays), LEVEL)
    layout = tuple((name, kind) for name, kind, _ in arrays)
    return Chunk(layout, (len(prompt), len(text)), data, _facts(response, derived))


def _look_arrays(end: str, response: Response, look: Look, numbers: Numbers) -> list[tuple[str, str, bytes]]:
    # pi less mu, not pi: near equal log-probs would lose the difference, which is what a reader looks for
    moved = look.log_pi.astype(np.float64) - response.log_mu
    arrays = [
        _floats(f"moved{end}", moved, SHOWN_BITS),
        _floats(f"D{end}", numbers.divergence, SHOWN_BITS),
        _floats(f"gate{end}", np.where(response.mask, look.gate, 1.0), SHOWN_BITS),
        _numbers(f"cause{end}", np.where(response.mask, look.cause, 0).astype(np.uint8)),
    ]
    if numbers.weight is not None:
        arrays.append(_floats(f"w{end}", numbers.weight, SHOWN_BITS))
    if numbers.spent is not None and numbers.allowance is not None:
        arrays.append(_floats(f"S{end}", numbers.spent, SUMMED_BITS))
        arrays.append(_floats(f"limit{end}", numbers.allowance, SUMMED_BITS))
    return arrays


def _facts(response: Response, derived: list[Numbers]) -> dict[str, Any]:
    own = response.mask.astype(bool)
    first = response.first
    causes = np.where(own, first.cause, 0)
    advantages = response.advantages[own]
    return {
        "uid": response.uid,
        "sample": response.sample,
        "output": response.output,
        "length": response.length,
        "own": int(own.sum()),
        "masked": _rounded_number(float((1 - first.gate[own].astype(np.float64).clip(0, 1)).sum())),
        "token": int((causes == TOKEN).sum()),
        "prefix": int((causes == PREFIX).sum()),
        "capped": int((causes == CAPPED).sum()),
        "A": _rounded_number(float(advantages.mean())) if len(advantages) else 0.0,
        "reward": _rounded_number(response.reward),
        "behind": response.versions_behind,
        "largest": _rounded_number(float(derived[0].divergence.max(initial=0.0))),
        "updates": [look.update for look in response.looks],
        "delta_b": [None if d.delta_b is None else _rounded_number(d.delta_b) for d in derived],
    }


def _floats(name: str, values: np.ndarray, bits: int) -> tuple[str, str, bytes]:
    return _numbers(name, rounded(np.asarray(values, np.float32), bits), "f4")


def _numbers(name: str, values: np.ndarray, kind: str = "") -> tuple[str, str, bytes]:
    width = values.dtype.itemsize
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    return name, kind or f"u{width}", little.view(np.uint8).reshape(-1, width).T.tobytes()


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Float32 with so many bits of the mantissa left, to the nearest; NaN and infinities stay what they are."""
    if bits >= ALL_BITS:
        return values
    cut = ALL_BITS - bits
    whole = np.ascontiguousarray(values).view(np.uint32)
    kept = ((whole + np.uint32(1 << (cut - 1))) >> np.uint32(cut)) << np.uint32(cut)
    return np.where(np.isfinite(values), kept.view(np.float32), values)


def _rounded_number(value: float) -> float | None:
    """Six digits for JSON, which knows no NaN."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
