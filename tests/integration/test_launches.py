"""How many kernels a loss launches on an accelerator, counted on the CPU.

Counted is every ATen operation that verl's registered loss and its backward dispatch, with the metrics and verl's own
``agg_loss``, but for views and what only reads a tensor's shape or type: on a GPU each is at least one kernel or one
copy (``topk``, ``cumsum`` and reductions may take two or three).
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cppo_verl.trust_region import budget
from tests.helpers import actor_config, random_batch, run_loss

LIMIT = 100
NO_KERNEL = {"aten.promote_types.default"}
AGGREGATION = {"dp_size": 1, "global_batch_size": 16, "batch_num_tokens": 4096, "loss_scale_factor": 512}


class Launches(TorchDispatchMode):
    """Names of the operations that are dispatched while it is on."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and str(func) not in NO_KERNEL:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "knobs"), [("cppo", {}), ("trm_avg", {"divergence": "kl"}), ("dppo", {"trace": 4})])
def test_a_rule_launches_at_most_100_kernels_and_reads_the_device_once(name: str, knobs: dict, monkeypatch):
    """``.cpu()`` copies nothing here, so what is looked for is any read of a single value."""
    monkeypatch.setattr(budget, "_largest", lambda values, count: values.topk(count).values)  # as an accelerator does
    batch, config = random_batch(seed=0, rows=16, width=5000).to(torch.float32), actor_config(AGGREGATION, **knobs)
    drift = (batch.log_prob - batch.old_log_prob).clamp(-2, 2)  # ratios as a run has them
    batch.log_prob = (batch.old_log_prob + drift).clamp_max(0.0)
    for counted in (Launches(), Launches()):  # the first call fills what is made once
        with counted:
            run_loss(name, batch, config, "seq-mean-token-sum-norm")
    own_copy, *names = counted.names
    assert own_copy == "aten.clone.default" and len(names) <= LIMIT, names
    assert not [name for name in names if "_local_scalar_dense" in name]
