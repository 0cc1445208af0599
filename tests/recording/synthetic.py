"""Synthetic records: what a rule makes of random tokens, through the writer's own path."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import Header, Look, Response, StepRecord
from cppo_verl.trust_region.knobs import TrustRegionKnobs
from cppo_verl.trust_region.rules import evaluate
from cppo_verl.trust_region.tokens import Tokens
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
    chosen = TrustRegionKnobs(**knobs)
    rng = np.random.default_rng((seed, step))
    looks = [look_at(rule, groups * size, length, int(rng.integers(2**31)), chosen)]
    if epochs > 1:
        looks.append(look_at(rule, groups * size, length, int(rng.integers(2**31)), chosen, looks[0][0]))
    tokens = looks[0][0]
    responses = []
    for row in range(groups * size):
        n = int(tokens.mask[row].nonzero().max()) + 1 if bool(tokens.mask[row].any()) else 0
        token_ids = rng.integers(len(WORDS), size=n).astype(np.int32)
        first, *last = (cut(*look, row, n, update=row % 4) for look in looks)
        responses.append(
            Response(
                uid=f"prompt-{step}-{row // size}",
                sample=row % size,
                prompt=f"What is {row // size} + 7 & <why>?",
                prompt_ids=np.arange(9, dtype=np.int32),
                pieces=[WORDS[i] for i in token_ids],
                token_ids=token_ids,
                mask=tokens.mask[row, :n].numpy(),
                log_mu=tokens.old_log_prob[row, :n].numpy(),
                advantages=tokens.advantages[row, :n].numpy(),
                reward=float(rng.integers(2)),
                versions_behind=0,
                width=length,
                first=first,
                last=last[0] if last else None,
            )
        )
    header = Header(
        step=step,
        rule=rule,
        knobs=dataclasses.asdict(chosen),
        tokenizer="synthetic",
        vocabulary=len(WORDS),
        responses=4 * groups * size,
        updates=4,
        epochs=epochs,
        version="0",
    )
    return StepRecord(header, tuple(responses))


def look_at(rule: str, rows: int, length: int, seed: int, knobs: TrustRegionKnobs, before: Tokens | None = None):
    """Tokens of a batch and the rule's verdict on them; with ``before``, another pi on the same responses."""
    tokens = random_batch(seed, rows, length).to(torch.float32).tokens()
    if before is not None:
        moved = before.log_prob + 0.1 * torch.randn(
            before.log_prob.shape, generator=torch.Generator().manual_seed(seed)
        )
        tokens = Tokens.of(moved.clamp_max(0), before.old_log_prob, before.advantages, before.mask)
    verdict, _ = evaluate(rule, tokens, knobs)
    return tokens, numbers.gate_and_cause(tokens, verdict, knobs.ratio_cap)


def cut(tokens: Tokens, decided, row: int, n: int, update: int) -> Look:
    gate, cause = (x[row, :n].numpy() for x in decided)
    return Look(log_pi=tokens.log_prob[row, :n].numpy(), gate=gate, cause=cause, update=update)


def run(folder: Path, steps: int = 3, **options) -> Path:
    """A run directory with so many recorded steps; ``options`` are those of ``step_record``."""
    for step in range(1, steps + 1):
        files.write(folder, step_record(step, **options))
    return folder
