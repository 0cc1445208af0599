"""A trainer that keeps its weights from the rollout engine, or whose workers get a NaN or lose the plug-in, as planned.

Named in VERL_USE_EXTERNAL_MODULES by the test; ``trainer.v1.poisoned.plan`` lists what happens step by step. The
workers' loss function is exchanged for one that spoils its input and then goes on as always.
"""

import dataclasses
import functools

import torch

from cppo_verl.integration.on_import import on_import

NAME = "poisoned"


def poisoned_loss(kind: str, config, model_output=None, data=None, dp_group=None, **more):
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    from cppo_verl.integration.losses import trust_region_loss

    if kind == "forgotten":
        POLICY_LOSS_REGISTRY.pop(config.policy_loss.loss_mode)
    elif kind == "nan" and torch.distributed.get_rank() == 0:
        rows = [row.clone() for row in data["old_log_probs"].unbind()]
        rows[0][3] = torch.nan
        data["old_log_probs"] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    return trust_region_loss(config, model_output, data, dp_group, **more)


def _define(trainer_module) -> None:
    from verl.trainer.ppo.v1.trainer_base import register_trainer
    from verl.utils.config import omega_conf_to_dataclass

    @register_trainer(NAME)
    class PoisonedTrainer(trainer_module.SyncTrainer):
        def on_step_begin(self) -> None:
            super().on_step_begin()
            self.kind, _, on_nonfinite = self.config.trainer.v1[NAME].plan[self.global_steps - 1].partition("-")
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            knobs = dataclasses.replace(actor.policy_loss, on_nonfinite=on_nonfinite or "raise")
            object.__setattr__(actor, "policy_loss", knobs)
            self.actor_rollout_wg.set_loss_fn(functools.partial(poisoned_loss, self.kind, actor))

        def on_step_end(self) -> None:
            if self.kind != "stale":  # else the next responses are of the old weights
                super().on_step_end()


on_import("cppo_verl.integration.trainer", _define)
