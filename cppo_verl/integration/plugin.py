"""Entry point of group ``verl.plugins``: loaded by ``import verl`` in every process (driver, Ray workers, agent loops).

It only plants hooks; the work happens when verl imports the module that a registry lives in. Everything of the CPU
platform happens only under ``VERL_PLATFORM=cpu``.
"""

from cppo_verl.integration import cpu, sockets
from cppo_verl.integration.on_import import on_import


def _register_losses(core_algos) -> None:
    from cppo_verl.integration import estimator, losses, skip

    losses.register(core_algos)
    core_algos.register_adv_est(skip.OURS)(estimator.compute_group_relative_advantage)


def _register_trainer(trainer_sync) -> None:
    import cppo_verl.integration.trainer  # noqa: F401


def _register_engine(engine_workers) -> None:
    from cppo_verl.integration.topk import fused

    fused.register()


on_import("verl.trainer.ppo.core_algos", _register_losses)
on_import("verl.trainer.ppo.v1.trainer_sync", _register_trainer)
on_import("verl.workers.engine_workers", _register_engine)
on_import("verl.workers.rollout.vllm_rollout.vllm_rollout", sockets.own_sender)
on_import("verl.workers.rollout.vllm_rollout.vllm_async_server", sockets.own_receiver)
if cpu.enabled():
    cpu.activate()
