"""The rollout engine keeps the weights it began with. Named in VERL_USE_EXTERNAL_MODULES by the test."""

from cppo_verl.integration.on_import import on_import


def _keep(trainer_module) -> None:
    trainer_module.PPOTrainerSync.on_step_end = lambda self: None  # where verl sends them


on_import("verl.trainer.ppo.v1.trainer_sync", _keep)
