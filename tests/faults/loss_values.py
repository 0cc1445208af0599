"""Prints every rule's loss and gradient norm on seeded tensors, as the verl on this path computes them.

Run as a program by tests/integration/test_compatibility.py, with another verl in front of the environment's.
"""

import json
import sys
from importlib import metadata

import torch
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass

from cppo_verl import presets
from cppo_verl.integration import checks

ROWS, LENGTH = 12, 300
OVERRIDES = ["actor_rollout_ref.rollout.n=8", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]


def batch() -> dict[str, torch.Tensor]:
    """A batch on which every rule masks some tokens: (ROWS, LENGTH) float64 tensors."""
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, LENGTH)
    old = -2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    moved = 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    moved[: ROWS // 2] *= 0.02  # TRM keeps these rows
    lengths = torch.randint(1, LENGTH + 1, (ROWS, 1), generator=generator)
    return {
        "old_log_prob": old,
        "log_prob": (old + moved).clamp(max=0).requires_grad_(),
        "advantages": torch.randn((ROWS, 1), generator=generator, dtype=torch.float64).expand(shape),
        "response_mask": (torch.arange(LENGTH) < lengths).to(torch.float64),
    }


def loss_and_gradient(preset: str) -> list[float]:
    """Loss and gradient norm of one preset, by the function that verl's registry gives for it."""
    config = presets.compose(preset, OVERRIDES)
    checks.require(config)
    OmegaConf.resolve(config.data)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    tensors = batch()
    # verl 0.9.0 averages GSPO so whatever the key says: docs/troubleshooting.md
    average = "seq-mean-token-mean" if preset == "gspo" else actor.loss_agg_mode
    loss, _ = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)(**tensors, loss_agg_mode=average, config=actor)
    loss.backward()
    return [loss.item(), tensors["log_prob"].grad.norm().item()]


def found() -> dict:
    """Of every preset, and where it was found."""
    # binary divergences only: what a top-K rule computes beyond them comes from the engine
    names = [name for name in presets.names() if not name.endswith("topk")]
    return {
        "version": metadata.version("verl"),
        "where": core_algos.__file__,
        "trainer": get_trainer_cls("trust_region").__module__,
        "losses": {name: loss_and_gradient(name) for name in names},
    }


if __name__ == "__main__":
    json.dump(found(), sys.stdout)
