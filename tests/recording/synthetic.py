"""Synthetic records: what a rule makes of made-up tokens, through the writer's own path."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cppo_verl.recording import files
from cppo_verl.recording.numbers import gate_and_cause, pad
from cppo_verl.recording.record import Header, Look, Response, StepRecord
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate
from tests.helpers import random_batch

WORDS = ("the ", "sum ", "of ", "12 ", "+ ", "7 ", "is ", "19", ".\n", "é", "so ", "<b>", "答", " &")


def step_record(
    step: int = 1,
    rule: str = "cppo",
    groups: int = 2,
    size: int = 4,
    length: int = 40,
    epochs: int = 1,
    seed: int = 0,
    **knobs,
) -> StepRecord:
    """``groups`` x ``size`` responses of up to ``length`` tokens (some empty, some with tool output)."""
    rng = np.random.default_rng((seed, step))
    batch = random_batch(int(rng.integers(2**31)), groups * size, length).to(torch.float32)
    pi, mu, advantages, mask = (
        x.numpy() for x in (batch.log_prob, batch.old_log_prob, batch.advantages, batch.mask.bool())
    )
    rows, seen = [], []
    for row in range(groups * size):
        n = int(np.flatnonzero(mask[row]).max(initial=-1)) + 1
        token_ids = rng.integers(len(WORDS), size=n).astype(np.int32)
        rows.append(
            {
                "uid": f"prompt-{step}-{row // size}",
                "sample": row % size,
                "prompt": f"What is {row // size} + 7 & <why>?",
                "pieces": [WORDS[i] for i in token_ids],
                "token_ids": token_ids,
                "mask": mask[row, :n],
                "log_mu": mu[row, :n],
                "advantages": advantages[row, :n],
                "reward": float(rng.integers(2)),
                "versions_behind": 0,
            }
        )
        moved = np.minimum(pi[row, :n] + 0.1 * rng.normal(size=n), 0).astype(np.float32)
        seen.append([pi[row, :n], moved][:epochs])
    header = {"tokenizer": "synthetic", "vocabulary": len(WORDS), "responses": 4 * groups * size, "epochs": epochs}
    return record_of(rows, seen, rule, TrustRegionKnobs(**knobs), step=step, **header)


def record_of(
    rows: Sequence[dict[str, Any]], seen: Sequence[Sequence[np.ndarray]], rule: str, knobs: TrustRegionKnobs, **header
) -> StepRecord:
    """Responses with these fields, decided on by the rule at each of the log pi that were ``seen``, one an epoch."""
    looks: list[list[Look]] = [[] for _ in rows]
    undecided = [[Look(log_pi, log_pi, log_pi) for log_pi in log_pis] for log_pis in seen]
    prompt_ids = np.arange(9, dtype=np.int32)
    drafts = [Response(**row, prompt_ids=prompt_ids, first=own[0]) for row, own in zip(rows, undecided, strict=True)]
    for epoch, blank in enumerate(zip(*undecided, strict=True)):
        tokens = pad(drafts, blank)
        decided = gate_and_cause(tokens, evaluate(rule, tokens, knobs)[0], knobs.ratio_cap)
        for row, look in enumerate(blank):
            gate, cause = (x[row, : len(look.log_pi)].numpy() for x in decided)
            looks[row].append(Look(look.log_pi, gate, cause, update=row % 4 if epoch == 0 else 1))
    responses = [
        dataclasses.replace(draft, first=first, last=last[0] if last else None)
        for draft, (first, *last) in zip(drafts, looks, strict=True)
    ]
    said = {"responses": 64, "updates": 4, "version": "0", **header}
    return StepRecord(Header(rule=rule, knobs=dataclasses.asdict(knobs), **said), tuple(responses))


def with_look(response: Response, **changed) -> Response:
    """The response with its first look changed."""
    return dataclasses.replace(response, first=dataclasses.replace(response.first, **changed))


def run(folder: Path, steps: int = 3, **options) -> Path:
    """A run directory with so many recorded steps; ``options`` are those of ``step_record``."""
    for step in range(1, steps + 1):
        files.write(folder, step_record(step, **options))
    return folder
