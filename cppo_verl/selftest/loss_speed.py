"""Forward + backward of every registered policy loss beside verl's own, on the same tensors, in turns."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from cppo_verl.selftest.timing import Clock, medians, peak_bytes

REFERENCE = "dppo_tv (verl)"
VARIANTS = (
    ("cppo", {"budget": "fixed"}),
    ("cppo", {"budget": "none"}),
    ("cppo", {"gate": "soft"}),
    ("cppo", {"gate": "restore"}),
    ("dppo", {"gate": "restore"}),
    ("dppo", {"trace": 4}),
    ("cppo", {"divergence": "kl", "delta": 0.1, "delta_b": 0.002}),
    ("cppo", {"weights": "shuffled"}),
)


def registered_losses() -> dict[str, Callable]:
    """Name -> loss(log_prob, old_log_prob, advantages, mask), from verl's registry with its own actor config."""
    from cppo_verl.trust_region.rules import RULES, capability

    ours = {name: _bind(name, divergence="kl" if capability(name).needs_kl else "tv") for name in RULES}
    # by the first knob that differs: the KL thresholds follow from the divergence
    variants = {
        f"{name} {next(iter(knobs))}={next(iter(knobs.values()))}": _bind(name, **knobs) for name, knobs in VARIANTS
    }
    verls = {f"{name} (verl)": _bind(name) for name in ("vanilla", "dppo_tv", "cispo")}
    return {**verls, **ours, **variants}


def _bind(mode: str, **knobs) -> Callable:
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
    advantages = torch.randn(batch, 1, generator=generator).expand(batch, length).contiguous()
    mask = torch.arange(length) < torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    log_prob, *given = (x.to(device) for x in ((old_log_prob + drift).clamp_max(0.0), old_log_prob, advantages, mask))

    def step(loss: Callable) -> None:
        loss(log_prob.detach().requires_grad_(), *given)[0].backward()

    steps = {name: partial(step, loss) for name, loss in losses.items()}
    took = medians(steps, device, rounds, clock=clock)
    for name, seconds in took.items():
        extra = peak_bytes(steps[name], device) / (4 * batch * length)
        yield batch, length, name, 1e3 * seconds, seconds / took[REFERENCE], extra
