"""Forward + backward of every registered policy loss beside verl's own, on the same tensors, in one run.

    python -m benchmarks.loss                          # 32 x 8192, CPU, or CUDA where there is one
    python -m benchmarks.loss --batches 1 8 64 --lengths 1024 8192 32768

The losses take turns in every round, so that a drifting machine hits all alike; printed are medians, the ratio of
medians to verl's dppo_tv, and the peak memory a call adds, in float32 tensors of the input's shape.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFERENCE = "dppo_tv (verl)"


def main() -> None:
    """Print a table, one row a loss and shape; --csv also writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="names of losses to measure beside the reference")
    parser.add_argument("--csv", help="file to write the rows to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    losses = {k: v for k, v in registered_losses().items() if not args.only or k in args.only or k == REFERENCE}
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.rounds} rounds, float32")
    print(f"{'batch x length':>14}  {'loss':<28}{'median ms':>10}{'x dppo_tv':>11}{'extra tensors':>15}")
    rows = []
    for batch in args.batches:
        for length in args.lengths:
            for row in measure(losses, batch, length, args.rounds, torch.device(args.device)):
                print(
                    f"{batch:>6} x {length:<5}  {row[2]:<28}{row[3]:>10.2f}{row[4]:>11.2f}{row[5]:>15.1f}", flush=True
                )
                rows.append(row)
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["batch", "length", "loss", "median_ms", "ratio_to_dppo_tv", "extra_float32_tensors"])
            writer.writerows(rows)


def registered_losses() -> dict[str, Callable]:
    """Name -> loss(log_prob, old_log_prob, advantages, mask), from verl's registry with its own actor config."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import FSDPActorConfig

    from cppo_verl.integration.config import TrustRegionLossConfig
    from cppo_verl.trust_region.rules import RULES

    def bind(mode: str, **knobs) -> Callable:
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

    losses = {"vanilla (verl)": bind("vanilla"), REFERENCE: bind("dppo_tv"), "cispo (verl)": bind("cispo")}
    kl = {"trm_max", "trm_avg", "trm_max_avg"}
    losses |= {name: bind(name, divergence="kl" if name in kl else "tv") for name in RULES}
    losses |= {
        "cppo budget=fixed": bind("cppo", budget="fixed"),
        "cppo budget=none": bind("cppo", budget="none"),
        "cppo gate=soft": bind("cppo", gate="soft"),
        "cppo divergence=kl": bind("cppo", divergence="kl", delta=0.1, delta_b=0.002),
        "cppo weights=shuffled": bind("cppo", weights="shuffled"),
    }
    return losses


def measure(losses: dict[str, Callable], batch: int, length: int, rounds: int, device: torch.device) -> Iterator[tuple]:
    """Rows (batch, length, name, median ms, ratio to the reference, extra tensors)."""
    generator = torch.Generator().manual_seed(0)
    old_log_prob = torch.rand(batch, length, generator=generator).clamp_min(1e-4).log()
    drift = 0.1 * torch.randn(batch, length, generator=generator)
    log_prob = (old_log_prob + drift).clamp_max(0.0).to(device)
    old_log_prob = old_log_prob.to(device)
    advantages = torch.randn(batch, 1, generator=generator).expand(batch, length).contiguous().to(device)
    lengths = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    mask = (torch.arange(length) < lengths).to(device)

    def step(loss: Callable) -> None:
        leaf = log_prob.detach().requires_grad_()
        loss(leaf, old_log_prob, advantages, mask)[0].backward()

    times: dict[str, list[float]] = {name: [] for name in losses}
    for round_ in range(rounds + 2):
        for name, loss in losses.items():
            elapsed = timed(lambda loss=loss: step(loss), device)
            if round_ >= 2:
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, loss in losses.items():
        extra = peak_bytes(lambda loss=loss: step(loss), device) / (4 * batch * length)
        yield batch, length, name, 1e3 * medians[name], medians[name] / medians[REFERENCE], extra


def timed(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(step: Callable[[], None], device: torch.device) -> float:
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
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known:
                storage = leaf.untyped_storage()
                self.live[storage._cdata] = (torch.multiprocessing.reductions.StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


if __name__ == "__main__":
    sys.exit(main())
