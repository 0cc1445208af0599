"""Weights from the trainer to rollout engines in other processes, over gloo: verl's separate trainer without a GPU.

Registered with verl as ``checkpoint_engine.backend=gloo``. The trainer's first rank sends one tensor after the other to
all rollout workers; its other ranks only take part in gathering each tensor.
"""

import asyncio
import datetime
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from cppo_verl.integration import cpu

OUT = -1  # rank of a trainer process that sends nothing
PATIENCE = datetime.timedelta(minutes=5)


@CheckpointEngineRegistry.register("gloo")
class GlooCheckpointEngine(CheckpointEngine):
    """One broadcast a tensor from rank 0; its name, shape and dtype stand in the file where the ranks meet.

    Args:
        bucket_size: not used, for tensors travel one by one.
        is_master: whether this is the trainer's first rank.
    """

    def __init__(self, bucket_size: int, is_master: bool = False):
        self.is_master = is_master
        self.place: Path | None = None  # the file to meet in, on the sender
        self.group: Any = None  # ProcessGroupGloo while weights travel

    def prepare(self) -> dict[str, Any]:
        """A new file to meet in, from the sender."""
        self.place = cpu.meeting_place(f".weights-{secrets.token_hex(8)}") if self.is_master else None
        return {"place": str(self.place) if self.place else None}

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]):
        """The trainer's first rank and every rollout worker, in this order."""
        size = 1 + rollout_world_size
        return tuple(
            {"rank": ranks, "world_size": [size] * len(ranks), "place": [metadata[0]["place"]] * len(ranks)}
            for ranks in ([0] + [OUT] * (actor_wg_world_size - 1), list(range(1, size)))
        )

    def init_process_group(self, rank: int, world_size: int, place: str) -> None:  # type: ignore[override]
        """Meet the others; returns at once on a rank that is left out."""
        if rank != OUT:
            self.store = FileStore(place, world_size)
            self.group = ProcessGroupGloo(self.store, rank, world_size, PATIENCE)

    def finalize(self) -> None:
        """Leave the group and take its file away."""
        self.group = None
        if self.place:
            self.place.unlink(missing_ok=True)

    async def send_weights(self, weights: Iterator[tuple[str, Tensor]], global_steps: int | None = None) -> None:
        """Send every tensor; a rank that is left out walks along, for producing a tensor is collective."""
        sent = 0
        for name, weight in weights:
            if self.group is not None:
                tensor = weight.detach().cpu().contiguous()
                header = [name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
                self.store.set(f"tensor {sent}", json.dumps(header))
                await self._broadcast(tensor)
                sent += 1
        if self.group is not None:
            self.store.set(f"tensor {sent}", json.dumps(None))

    async def receive_weights(  # type: ignore[override]  # verl iterates over it
        self, global_steps: int | None = None
    ) -> AsyncIterator[tuple[str, Tensor]]:
        """Names and tensors, as they come."""
        for number in itertools.count():
            header = json.loads(await asyncio.to_thread(self.store.get, f"tensor {number}"))
            if header is None:
                return
            name, shape, dtype = header
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            await self._broadcast(tensor)
            yield name, tensor

    async def _broadcast(self, tensor: Tensor) -> None:
        await asyncio.to_thread(self.group.broadcast(tensor.view(-1).view(torch.uint8), 0).wait)
