"""How many kernels a loss launches on an accelerator, counted on the CPU.

Counted is every ATen operation that verl's registered loss and its backward dispatch, with the metrics and verl's own
``agg_loss``, but for views and what only reads a tensor's shape or type: on a GPU each is at least one kernel or one
copy (``topk``, ``cumsum`` and reductions may take two or three).
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from verl.trainer.ppo.core_algos import get_policy_loss_fn

from cppo_verl.trust_region import budget
from tests.helpers import Batch, actor_config, random_batch

LIMIT, FLOATING = 100, 105  # of a gate that keeps or drops, and of one that weighs
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


def launches(name: str, batch: Batch, **knobs) -> list[str]:
    """Of one call in the presets' aggregation, and its backward; after a call that fills what is made once."""
    config = actor_config(AGGREGATION, **knobs)
    loss = get_policy_loss_fn(name)
    for counted in (Launches(), Launches()):
        log_prob = batch.log_prob.clone().requires_grad_()
        with counted:
            value, _ = loss(
                batch.old_log_prob, log_prob, batch.advantages, batch.mask, "seq-mean-token-sum-norm", config, None
            )
            value.backward()
        assert log_prob.grad is not None and (log_prob.grad != 0).any()
    return counted.names


def usual(width: int = 5000) -> Batch:
    """float32, one advantage a response, int64 mask with holes, ratios near 1: a batch as a run has it."""
    batch = random_batch(seed=0, rows=16, width=width).to(torch.float32)
    batch.log_prob = (batch.old_log_prob + (batch.log_prob - batch.old_log_prob).clamp(-2, 2)).clamp_max(0.0)
    return batch


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """The quantile as an accelerator takes it."""
    monkeypatch.setattr(budget, "_largest", lambda values, count: values.topk(count).values)


def test_cppo_launches_at_most_100_kernels_and_reads_the_device_once():
    """``.cpu()`` copies nothing here, so what is looked for is any read of a single value."""
    names = launches("cppo", usual())
    assert len(names) <= LIMIT, names
    assert len(launches("cppo", usual(width=2100))) == len(names)  # the count does not depend on the shape
    assert not [name for name in names if "_local_scalar_dense" in name]


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("trm_avg", {"divergence": "kl"}), ("gbpo", {}), ("cppo", {"gate": "restore"}), ("dppo", {"trace": 4})],
)
def test_so_do_the_other_rules(name: str, knobs: dict):
    assert len(launches(name, usual(), **knobs)) <= (FLOATING if "gate" in knobs else LIMIT)
