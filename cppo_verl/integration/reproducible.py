"""``trainer.v1.trust_region.reproducible``: the same responses and mini-batches again, and after every resume.

verl's sampled tokens come from one random stream of the engine, which starts anew with the process, and its batch is
ordered by which response was finished first. Here each response has a seed of its own, made of what is asked and when,
and the batch has the order of the data loader. Not for filtered groups, which fetch prompts by need.
"""

import zlib
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

MANAGER = "cppo_verl.integration.seeded.SeededAgentLoopManager"
KEY = "trainer.v1.trust_region.reproducible"


def seed_of(seed: int, step: int, prompt: object, sample: int) -> int:
    """A seed for one response, 0 to 2^31 - 1, the same in every process."""
    return zlib.crc32(repr((seed, step, prompt, sample)).encode()) >> 1


def loader_order(keys: Sequence[str], fetched: Sequence[str]) -> list[int]:
    """Row numbers by prompt as ``fetched``, then by sample; keys are verl's ``{uid}_{sample}_{part}``."""
    positions = {uid: position for position, uid in enumerate(fetched)}

    def place(row: int) -> tuple[int, ...]:
        uid, sample, part = keys[row].split("_")
        return positions[uid], int(sample), int(part)

    return sorted(range(len(keys)), key=place)


class LoaderOrder:
    """Over verl's trainer: the batch gets the data loader's order before it is cut into mini-batches."""

    config: Any
    _fetched: tuple[str, ...] = ()  # uids of the prompts of the step at hand

    def _fetch_one_gen_batch(self):
        batch = super()._fetch_one_gen_batch()  # type: ignore[misc]
        self._fetched = (*self._fetched, *batch["uid"])
        return batch

    def _balance_batch(self, batch, *args, **kwargs):
        if OmegaConf.select(self.config, KEY):
            batch.reorder(loader_order(batch.keys, self._fetched))
        self._fetched = ()
        return super()._balance_batch(batch, *args, **kwargs)  # type: ignore[misc]
