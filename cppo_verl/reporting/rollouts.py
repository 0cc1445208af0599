"""Deviation by position from dumped rollouts: how far the trained policy is from the one that sampled, token by token.

A dump is ``RUN/rollouts/*.jsonl``, one response a line, with ``rollout_log_probs`` (of the policy that sampled) and
``log_probs`` (of the policy being trained), a number a response token each, and ``response_mask`` where tokens are not
the policy's own. verl's own dump (trainer.rollout_data_dir) holds text and scores only, which is not enough.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cppo_verl.reporting.logs import LONGEST_LINE, LogError, lines
from cppo_verl.reporting.names import POSITION_BINS

FOLDER = "rollouts"
KEYS = ("rollout_log_probs", "log_probs")


@dataclass(frozen=True)
class Dump:
    """Mean divergence by bin of the relative position, (POSITION_BINS,) float64, over ``responses`` dumped ones."""

    by_position: np.ndarray
    responses: int


def read_dump(run_dir: Path, skip_bad_lines: bool = False) -> Dump | None:
    """The mean of abs(pi - mu) of the sampled token in equal bins of the position; None where no dump has log-probs.

    Raises:
        LogError: a line that is no JSON object or whose log-probs do not fit each other; names file and line.
    """
    totals, counts, responses = np.zeros(POSITION_BINS), np.zeros(POSITION_BINS), 0
    for path in sorted((run_dir / FOLDER).glob("*.jsonl")):
        for number, raw in lines(path):
            try:
                gap = _gap(raw)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                if skip_bad_lines:
                    continue
                raise LogError(f"{path}, line {number}: {error}. --skip-bad-lines leaves such lines out.") from error
            if gap is None:  # a dump of text is large, and one line tells
                break
            bins = np.arange(len(gap)) * POSITION_BINS // max(len(gap), 1)
            totals += np.bincount(bins, gap, POSITION_BINS)
            counts += np.bincount(bins, minlength=POSITION_BINS)
            responses += 1
    if not responses:
        return None
    return Dump(np.divide(totals, counts, out=np.full(POSITION_BINS, np.nan), where=counts > 0), responses)


def _gap(raw: bytes) -> np.ndarray | None:
    """abs(pi - mu) of the policy's own tokens, (T,) float64; None for a record without log-probs.

    Raises:
        ValueError: not JSON, or the lists differ in length.
    """
    if len(raw) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE >> 20} MiB")
    record = json.loads(raw)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if not all(key in record for key in KEYS):
        return None
    mu, pi = (np.asarray(record[key], dtype=np.float64) for key in KEYS)
    own = np.asarray(record.get("response_mask", np.ones_like(mu)), dtype=bool)
    if mu.ndim != 1 or not mu.shape == pi.shape == own.shape:
        raise ValueError(f"{' and '.join(KEYS)} have shapes {mu.shape} and {pi.shape}, response_mask {own.shape}")
    gap = np.abs(np.exp(pi[own]) - np.exp(mu[own]))
    if not np.isfinite(gap).all():
        raise ValueError("log-probs that are not finite or far above 0")
    return gap
