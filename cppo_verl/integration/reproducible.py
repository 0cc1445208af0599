"""``trainer.v1.trust_region.reproducible``: the same responses and mini-batches again, and after every resume.

verl's sampled tokens come from one random stream of the engine, which starts anew with the process, and its batch is
ordered by which response was finished first. Here each response has a seed of its own, made of what is asked and when,
and the batch has the order of the data loader. Not for filtered groups, which fetch prompts by need.
"""

import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
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
    """Over verl's trainer: the batch gets the data loader's order before it is cut into mini-batches.

    Attributes:
        loader_places: place of each prompt's uid in that order, for the prompts that the batch at hand may hold.
    """

    config: Any
    loader_places: Mapping[str, int] = MappingProxyType({})
    trainer_mode: str
    _fetched: tuple[str, ...] = ()  # uids of the prompts of the step at hand
    _waiting: tuple[str, ...] = ()  # and of those fetched before that no batch has had yet

    def _fetch_one_gen_batch(self):
        batch = super()._fetch_one_gen_batch()  # type: ignore[misc]
        self._fetched = (*self._fetched, *batch["uid"])
        return batch

    def _balance_batch(self, batch, *args, **kwargs):
        if OmegaConf.select(self.config, KEY):
            batch.reorder(loader_order(batch.keys, self._fetched))
        places = (*self._waiting, *self._fetched)
        self.loader_places = {uid: place for place, uid in enumerate(places)}
        here = {key.rsplit("_", 2)[0] for key in batch.keys}
        self._waiting = () if self.trainer_mode == "sync" else tuple(uid for uid in places if uid not in here)
        self._fetched = ()
        return super()._balance_batch(batch, *args, **kwargs)  # type: ignore[misc]
