"""Time and memory of steps on their device, in turns; and of the registered policy losses beside verl's own."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARM_UP = 2  # rounds that do not count
REFERENCE = "dppo_tv (verl)"
VARIANTS: dict[str, dict[str, Any]] = {
    "cppo budget=fixed": {"budget": "fixed"},
    "cppo budget=none": {"budget": "none"},
    "cppo gate=soft": {"gate": "soft"},
    "cppo gate=restore": {"gate": "restore"},
    "dppo gate=restore": {"gate": "restore"},
    "dppo trace=4": {"trace": 4},
    "cppo divergence=kl": {"divergence": "kl", "delta": 0.1, "delta_b": 0.002},
    "cppo weights=shuffled": {"weights": "shuffled"},
}


def medians(steps: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each step, its work on the device included. They take turns in every round, so that a drifting
    machine hits all alike."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARM_UP + rounds):
        for name, step in steps.items():
            wait()
            began = time.perf_counter()
            step()
            wait()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


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
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def registered_losses() -> dict[str, Callable]:
    """Name -> loss(log_prob, old_log_prob, advantages, mask), from verl's registry with its own actor config."""
    from cppo_verl.trust_region.rules import RULES, capability

    losses: dict[str, dict[str, Any]] = {f"{name} (verl)": {} for name in ("vanilla", "dppo_tv", "cispo")}
    losses |= {name: {"divergence": "kl" if capability(name).needs_kl else "tv"} for name in RULES}
    return {name: _registered(name.split()[0], **knobs) for name, knobs in (losses | VARIANTS).items()}


def _registered(mode: str, **knobs) -> Callable:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import FSDPActorConfig

    from cppo_verl.integration.config import TrustRegionLossConfig

    config = FSDPActorConfig(
        rollout_n=8,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=0.15,
        clip_ratio_high=0.15,
        clip_ratio_c=20.0,
        policy_loss=TrustRegionLossConfig(loss_mode=mode, **knobs),
    )
    function = get_policy_loss_fn(mode)

    def call(log_prob, old_log_prob, advantages, mask):
        return function(old_log_prob, log_prob, advantages, mask, "seq-mean-token-sum", config, None)

    return call


def of_losses(
    losses: Mapping[str, Callable], rows: int, width: int, rounds: int, device: torch.device
) -> dict[str, tuple[float, float, float]]:
    """Forward + backward by name: median milliseconds, their ratio to the reference's, and the peak of extra memory in
    float32 tensors of the input's shape."""
    random = torch.Generator().manual_seed(0)
    old_log_prob = torch.rand(rows, width, generator=random).clamp_min(1e-4).log()
    log_prob = (old_log_prob + 0.1 * torch.randn(rows, width, generator=random)).clamp_max(0.0).to(device)
    advantages = torch.randn(rows, 1, generator=random).expand(rows, width).contiguous()
    mask = torch.arange(width) < torch.randint(width // 2, width + 1, (rows, 1), generator=random)
    given = [x.to(device) for x in (old_log_prob, advantages, mask)]

    def step(loss: Callable) -> None:
        loss(log_prob.detach().requires_grad_(), *given)[0].backward()

    steps = {name: partial(step, loss) for name, loss in losses.items()}
    took = medians(steps, device, rounds)
    extra = {name: peak_bytes(steps[name], device) / (4 * rows * width) for name in steps}
    return {name: (1e3 * took[name], took[name] / took[REFERENCE], extra[name]) for name in steps}
