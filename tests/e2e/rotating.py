"""A trainer that changes its rule every few steps, so that one start of the stack tries every preset.

Named in VERL_USE_EXTERNAL_MODULES by the test. Only the loss function is exchanged, through verl's ``set_loss_fn``:
model, rollout engine, transport and optimizer stay; started with a top-K preset, so that the rollout hands those on.
"""

import functools

from omegaconf import OmegaConf

from cppo_verl.integration.on_import import on_import

NAME = "rotating"
LOSS_KEYS = ("policy_loss", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c")


def _define(trainer_module) -> None:
    from verl.trainer.ppo.v1.trainer_base import register_trainer
    from verl.utils.config import omega_conf_to_dataclass

    from cppo_verl import presets
    from cppo_verl.integration import checks, losses, topk

    @register_trainer(NAME)
    class RotatingTrainer(trainer_module.TrustRegionTrainer):
        def on_step_begin(self) -> None:
            super().on_step_begin()
            plan = self.config.trainer.v1[NAME]
            turn, within = divmod(self.global_steps - 1, plan.steps_each)
            if within == 0:
                self._switch_to(plan.presets[turn])

        def _switch_to(self, preset: str) -> None:
            composed = presets.compose(preset, ["actor_rollout_ref.rollout.n=8"])
            checks.require(composed)
            OmegaConf.resolve(composed.data)
            for key in LOSS_KEYS:
                self.config.actor_rollout_ref.actor[key] = OmegaConf.create(
                    {key: OmegaConf.to_container(composed.actor_rollout_ref.actor, resolve=False)[key]}
                )[key]
            self.use_topk = topk.wanted(self.config)
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            self.actor_rollout_wg.set_loss_fn(functools.partial(losses.trust_region_loss, config=actor))


on_import("cppo_verl.integration.trainer", _define)
