"""Stage ``speed``: what the losses and the top-K cost beside verl's own, as ratios, in time and in memory."""

import time
from collections.abc import Iterator

import torch

from cppo_verl.selftest import loss_speed, topk_speed
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import Row, at_most

# loss: time over verl's dppo_tv as predicted (two idle cores, 32 x 8192, README.md) and at most
TIMES = {
    "dppo": (1.1, 3.0),
    "cppo": (1.3, 3.0),
    "cppo gate=soft": (1.6, 4.0),
    "cppo divergence=kl": (2.5, 6.0),
    "trm_max": (1.7, 5.0),
    "minpro": (1.2, 3.0),
}
MEMORY = {"cpu": 1.0, "cuda": 1.5}  # of verl's dppo_tv; on a GPU nobody has counted yet
TOPK_TIME, TOPK_MEMORY = 1.25, 1.01  # of the same step with the binary divergence


def measure(setting: Setting) -> Iterator[Row]:
    """The stage's rows."""
    device = torch.device(setting.device)
    if setting.on_cpu:  # one thread and its own time: a busy machine then does not count as slow code
        torch.set_num_threads(1)
    yield from _losses(setting, device)
    yield from _topk(setting, device)


def _losses(setting: Setting, device: torch.device) -> Iterator[Row]:
    wanted = {loss_speed.REFERENCE, *TIMES}
    losses = {name: loss for name, loss in loss_speed.registered_losses().items() if name in wanted}
    clock = time.process_time if setting.on_cpu else time.perf_counter
    found = {row[2]: row for row in loss_speed.measure(losses, 32, 8192, 9, device, clock)}
    *_, own = found[loss_speed.REFERENCE]
    for name, (predicted, limit) in TIMES.items():
        _, _, _, milliseconds, ratio, extra = found[name]
        yield at_most(f"{name}: time", ratio, limit, predicted, "x dppo_tv", f"32 x 8192 in {milliseconds:.1f} ms")
        yield at_most(
            f"{name}: extra memory",
            extra / own,
            MEMORY[setting.device],
            unit="x dppo_tv",
            note=f"{extra:.1f} input tensors",
        )


def _topk(setting: Setting, device: torch.device) -> Iterator[Row]:
    if setting.on_cpu:
        case = topk_speed.Case.make(256, 256, 18_992, 20, "cpu", torch.float32)
        rows = topk_speed.measure(case, 3, time.process_time)
    else:
        case = topk_speed.Case.make(8192, 2048, 151_936, 20, setting.device, torch.bfloat16)
        rows = topk_speed.measure(case, 9)
    for way, _, ratio, _, memory, _ in rows:
        if way.startswith("topk"):
            yield at_most(f"{way}: time of LM head and log-prob", ratio, TOPK_TIME, 1.0, "x binary")
            yield at_most(f"{way}: peak memory", memory, TOPK_MEMORY, 1.001, "x binary")
