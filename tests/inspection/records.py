"""Records with texts and divergences of one's choice, decided on by the rules themselves."""

from collections.abc import Sequence

import numpy as np

from cppo_verl.recording.record import StepRecord
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from tests.recording.synthetic import record_of


def step_record(
    texts: Sequence[Sequence[str]],
    advantages: Sequence[float] | None = None,
    step: int = 1,
    rule: str = "cppo",
    moved: float | None = 0.5,
    tools: int = 0,
    epochs: int = 1,
    group: int = 2,
    sampled: bool = False,
    **knobs,
) -> StepRecord:
    """A response a list of pieces. pi is ``moved`` (standard deviation, nats) away from mu, without it a little and one
    token in fifty much; the first ``tools`` tokens are not the policy's own; ``sampled`` has the sampling policy apart
    from mu."""
    rng = np.random.default_rng(step)
    rows, seen = [], []
    for row, pieces in enumerate(texts):
        n = len(pieces)
        mu = -rng.gamma(0.6, 1.5, size=n).astype(np.float32)
        width = np.where(rng.random(n) < 0.02, 0.7, 0.03) * np.minimum(1, 0.05 - mu) if moved is None else moved
        seen.append([np.minimum(mu + rng.normal(0, width, size=n), -1e-6).astype(np.float32) for _ in range(epochs)])
        a = rng.normal() if advantages is None else advantages[row]
        rows.append(
            {
                "uid": f"p{step}-{row // group}",
                "sample": row % group,
                "prompt": f"Prompt {row // group} & <b>why</b>?\nThink.",
                "pieces": list(pieces),
                "token_ids": np.arange(n, dtype=np.int32) + 100_000,
                "mask": np.arange(n) >= tools,
                "log_mu": mu,
                "advantages": np.full(n, a, np.float32),
                "reward": float(a > 0),
                "versions_behind": row % 2,
                "log_rollout": mu - 0.25 if sampled else None,
            }
        )
    return record_of(rows, seen, rule, TrustRegionKnobs(**knobs), step=step)


def sentence(tokens: int, seed: int = 0) -> list[str]:
    """So many pieces of running text, with newlines."""
    words = ("The", " sum", " of", " two", " is", " 4", "2", ".", "\n", " So", " we", " add", " them", ",", " and")
    rng = np.random.default_rng(seed)
    return [words[i] for i in rng.integers(len(words), size=tokens)]
