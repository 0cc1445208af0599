"""Time and peak memory of a step on its device, as the benchmarks and the selftest measure them."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = Callable[[], float]


def medians(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warm_up: int = 2,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each step, its work on the device included. They take turns in every round, so that a drifting
    machine hits all alike; the first ``warm_up`` rounds do not count.

    Args:
        clock: ``time.process_time`` counts what this process computes, whatever else the CPU does meanwhile.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warm_up + rounds):
        for name, step in steps.items():
            times[name].append(timed(step, device, clock))
    return {name: statistics.median(values[warm_up:]) for name, values in times.items()}


def timed(step: Callable[[], object], device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, its work on the device included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = clock()
    step()
    wait()
    return clock() - began


def peak_bytes(step: Callable[[], object], device: torch.device) -> float:
    """Most bytes of storage alive at once among those the step allocates."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with _StorageWatch() as watch:
        step()
    return watch.peak


class _StorageWatch(TorchDispatchMode):
    """Counts live bytes of the storages that operations return (temporaries inside a kernel are not seen)."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage())._cdata not in known:
                self.live[storage._cdata] = (torch.multiprocessing.reductions.StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out
