"""Records with texts and divergences of one's choice, decided on by the rules themselves."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cppo_verl.recording import numbers
from cppo_verl.recording.record import Header, Look, Response, StepRecord
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate


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
    rng, chosen = np.random.default_rng(step), TrustRegionKnobs(**knobs)
    made = []
    for row, pieces in enumerate(texts):
        n = len(pieces)
        mu = -rng.gamma(0.6, 1.5, size=n).astype(np.float32)
        width = np.where(rng.random(n) < 0.02, 0.7, 0.03) * np.minimum(1, 0.05 - mu) if moved is None else moved
        looks = [np.minimum(mu + rng.normal(0, width, size=n), -1e-6).astype(np.float32) for _ in range(epochs)]
        a = rng.normal() if advantages is None else advantages[row]
        first, *last = (Look(pi, np.ones(n, np.float32), np.zeros(n, np.int8), update=i) for i, pi in enumerate(looks))
        made.append(
            Response(
                uid=f"p{step}-{row // group}",
                sample=row % group,
                prompt=f"Prompt {row // group} & <b>why</b>?\nThink.",
                prompt_ids=np.arange(5, dtype=np.int32),
                pieces=list(pieces),
                token_ids=np.arange(n, dtype=np.int32) + 100_000,
                mask=np.arange(n) >= tools,
                log_mu=mu,
                advantages=np.full(n, a, np.float32),
                reward=float(a > 0),
                versions_behind=row % 2,
                width=n,
                log_rollout=mu - 0.25 if sampled else None,
                first=first,
                last=last[0] if last else None,
            )
        )
    responses = tuple(made)
    for name in ("first", "last")[:epochs]:
        responses = _decided(responses, rule, chosen, name)
    header = Header(step, rule, dataclasses.asdict(chosen), responses=64, updates=4, version="0")
    return StepRecord(header, responses)


def _decided(responses: tuple[Response, ...], rule: str, knobs: TrustRegionKnobs, name: str) -> tuple[Response, ...]:
    looks = [getattr(response, name) for response in responses]
    tokens = numbers.pad(responses, looks, 1)
    verdict, _ = evaluate(rule, tokens, knobs)
    gates, causes = (x.numpy() for x in numbers.gate_and_cause(tokens, verdict, knobs.ratio_cap))
    found = []
    for row, (response, look) in enumerate(zip(responses, looks, strict=True)):
        n = response.length
        decided = dataclasses.replace(look, gate=gates[row, :n], cause=causes[row, :n])
        found.append(dataclasses.replace(response, **{name: decided}))
    return tuple(found)


def sentence(tokens: int, seed: int = 0) -> list[str]:
    """So many pieces of running text, with newlines."""
    words = ("The", " sum", " of", " two", " is", " 4", "2", ".", "\n", " So", " we", " add", " them", ",", " and")
    rng = np.random.default_rng(seed)
    return [words[i] for i in rng.integers(len(words), size=tokens)]
