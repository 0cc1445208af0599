"""``trainer.v1.trust_region.reproducible``: the same responses and mini-batches again, and after every resume.

verl's sampled tokens come from one random stream of the engine, which starts anew with the process, and its batch is
ordered by which response was finished first. Here each response has a seed of its own, made of what is asked and when
(``seeded``), and the batch has the order of the data loader. Not for filtered groups, which fetch prompts by need.
"""

import zlib
from collections.abc import Collection, Sequence
from typing import Any

import transfer_queue
from omegaconf import OmegaConf

from cppo_verl.integration import skip

MANAGER = "cppo_verl.integration.seeded.SeededAgentLoopManager"  # a module of its own: it imports verl
KEY = "trainer.v1.trust_region.reproducible"


def seed_of(seed: int, step: int, prompt: object, place: int, sample: int) -> int:
    """A seed for one response, 0 to 2^31 - 1, the same in every process; ``place`` tells equal prompts apart."""
    return zlib.crc32(repr((seed, step, prompt, place, sample)).encode()) >> 1


def loader_order(keys: Sequence[str], fetched: Sequence[str]) -> list[int]:
    """Row numbers by prompt as ``fetched``, then by sample; keys are verl's ``{uid}_{sample}_{part}``."""
    places = {uid: place for place, uid in enumerate(fetched)}
    order = [(places[uid], sample, part) for uid, sample, part in map(skip.split, keys)]
    return sorted(range(len(keys)), key=order.__getitem__)


class LoaderOrder:
    """Over verl's trainer: the batch gets the data loader's order before it is cut into mini-batches."""

    config: Any
    trainer_mode: str
    loader_places: dict[str, int]  # place of each uid in that order, of the prompts that the batch at hand may hold
    _fetched: tuple[str, ...] = ()  # uids of the prompts that no batch has had yet, in the loader's order

    def _fetch_one_gen_batch(self):
        batch = super()._fetch_one_gen_batch()  # type: ignore[misc]
        self._fetched = (*self._fetched, *batch["uid"])
        return batch

    def _balance_batch(self, batch, *args, **kwargs):
        if OmegaConf.select(self.config, KEY):
            batch.reorder(loader_order(batch.keys, self._fetched))
        self.loader_places = {uid: place for place, uid in enumerate(self._fetched)}
        waiting = () if self.trainer_mode == "sync" else self._waiting()
        self._fetched = tuple(uid for uid in self._fetched if uid in waiting)
        return super()._balance_batch(batch, *args, **kwargs)  # type: ignore[misc]

    def _waiting(self) -> Collection[str]:
        """Prompts that were asked and may still be trained on; sampling takes out what it chose or evicted."""
        return (transfer_queue.kv_list("train") or {}).get("train", {})
