"""Stage ``speed``: what the losses cost beside verl's own, as ratios, in time and in memory."""

import torch

from cppo_verl.selftest import measure

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


def test_losses(setting, table):
    if setting.on_cpu:
        torch.set_num_threads(1)
    every = measure.registered_losses()
    losses = {name: every[name] for name in (measure.REFERENCE, *TIMES)}
    found = measure.of_losses(losses, 32, 8192, 9, torch.device(setting.device))
    unit, own = "x dppo_tv", found[measure.REFERENCE][2]
    for name, (predicted, limit) in TIMES.items():
        milliseconds, ratio, extra = found[name]
        table.at_most(f"{name}: time", ratio, limit, predicted, unit=unit, note=f"32 x 8192 in {milliseconds:.1f} ms")
        table.at_most(f"{name}: extra memory", extra / own, MEMORY, unit=unit, note=f"{extra:.1f} input tensors")
