"""Stage ``speed``: what the losses and the top-K cost beside verl's own, as ratios, in time and in memory."""

import time
from functools import partial

import pytest
import torch

from cppo_verl.selftest import measure
from cppo_verl.selftest.inputs import K, engine_output, micro_batch, packed

# loss: time over verl's dppo_tv as measured on a CPU (one thread, 32 x 8192) and at most
TIMES = {
    "dppo": (1.1, 3.0),
    "cppo": (1.5, 3.0),
    "cppo gate=soft": (2.0, 4.0),
    "cppo divergence=kl": (2.8, 6.0),
    "trm_max": (2.3, 5.0),
    "minpro": (1.2, 3.0),
}
MEMORY = 2.0  # extra memory at most, of verl's dppo_tv; on a GPU nobody has counted yet
TOPK_TIME, TOPK_MEMORY = 1.25, 1.01  # of the same step with the binary divergence


@pytest.fixture(scope="module")
def clock(setting):
    """On the CPU one thread and its own time: a busy machine then does not count as slow code."""
    if setting.on_cpu:
        torch.set_num_threads(1)
    return time.process_time if setting.on_cpu else time.perf_counter


def test_losses(setting, table, clock):
    every = measure.registered_losses()
    losses = {name: every[name] for name in (measure.REFERENCE, *TIMES)}
    found = measure.of_losses(losses, 32, 8192, 9, torch.device(setting.device), clock)
    unit, own = "x dppo_tv", found[measure.REFERENCE][2]
    for name, (predicted, limit) in TIMES.items():
        milliseconds, ratio, extra = found[name]
        table.at_most(f"{name}: time", ratio, limit, predicted, unit=unit, note=f"32 x 8192 in {milliseconds:.1f} ms")
        table.at_most(f"{name}: extra memory", extra / own, MEMORY, unit=unit, note=f"{extra:.1f} input tensors")


def test_topk(setting, table, clock):
    """The LM head and verl's log-probs of a packed micro-batch, forward and backward, with the top-K and without."""
    from cppo_verl.integration.topk import logits

    size, vocabulary, longest, dtype, rounds = (
        (256, 18_992, 96, torch.float32, 3) if setting.on_cpu else (2048, 151_936, 3200, torch.bfloat16, 9)
    )
    micro, device = micro_batch(64, longest, dtype, 1.0), torch.device(setting.device)
    tokens = sum(len(ids) for _, ids, _, _ in micro)
    hidden, head = (torch.randn(n, size).to(device, dtype).requires_grad_() for n in (tokens, vocabulary))

    def step(with_topk: bool, data) -> None:
        output = engine_output(hidden @ head.t(), data)
        if with_topk:
            logits.divergence_of(output, data, "tv", K)
        output["log_probs"].values().sum().backward()
        hidden.grad = head.grad = None

    steps = {str(on): partial(step, on, packed(micro, setting.device, 1.0, on)) for on in (False, True)}
    took = measure.medians(steps, device, rounds, clock)
    peak = {name: measure.peak_bytes(way, device) for name, way in steps.items()}
    for what, found, *judged in (("time", took, TOPK_TIME, 1.0), ("peak memory", peak, TOPK_MEMORY, 1.001)):
        said = f"LM head and log-prob, {tokens} tokens, {vocabulary} words"
        table.at_most(f"topk: {what}", found["True"] / found["False"], *judged, unit="x binary", note=said)
