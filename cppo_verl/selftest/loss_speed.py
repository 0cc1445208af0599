"""Forward + backward of every registered policy loss beside verl's own, on the same tensors, in turns."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from cppo_verl.selftest.timing import Clock, medians, peak_bytes

REFERENCE = "dppo_tv (verl)"


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
        "cppo gate=restore": bind("cppo", gate="restore"),
        "dppo gate=restore": bind("dppo", gate="restore"),
        "dppo trace=4": bind("dppo", trace=4),
        "cppo divergence=kl": bind("cppo", divergence="kl", delta=0.1, delta_b=0.002),
        "cppo weights=shuffled": bind("cppo", weights="shuffled"),
    }
    return losses


def measure(
    losses: dict[str, Callable],
    batch: int,
    length: int,
    rounds: int,
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> Iterator[tuple]:
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

    steps = {name: partial(step, loss) for name, loss in losses.items()}
    took = medians(steps, device, rounds, clock=clock)
    for name, seconds in took.items():
        extra = peak_bytes(steps[name], device) / (4 * batch * length)
        yield batch, length, name, 1e3 * seconds, seconds / took[REFERENCE], extra
