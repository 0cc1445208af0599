"""A trainer that changes what it trains every few steps, so that one start of the stack walks many command lines.

Named in VERL_USE_EXTERNAL_MODULES by the test, with a file of turns: for each a preset, overrides, and whose agent loop
asks. Loss, advantages, critic, reference policy and filter are exchanged; model, engines and transport stay.
"""

import json
from pathlib import Path

from omegaconf import OmegaConf
from tensordict.tensorclass import NonTensorData

from cppo_verl.integration.on_import import on_import

NAME = "rotating"
SWITCHED = (  # what a preset or a command line may change while the processes stay
    "algorithm",
    *(f"actor_rollout_ref.actor.{key}" for key in ("policy_loss", "loss_agg_mode", "loss_scale_factor")),
    *(f"actor_rollout_ref.actor.{key}" for key in ("use_kl_loss", "kl_loss_coef", "entropy_coeff", "shuffle")),
)


def _define(trainer_module) -> None:
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.trainer.ppo.v1.trainer_base import register_trainer

    from cppo_verl.integration import checks, start_table, topk
    from cppo_verl.launch.overrides import compose

    @register_trainer(NAME)
    class RotatingTrainer(trainer_module.SyncTrainer):
        def on_step_begin(self) -> None:
            super().on_step_begin()
            plan = self.config.trainer.v1[NAME]
            turn, within = divmod(self.global_steps - 1, plan.steps_each)
            if within == 0:
                self._switch_to(json.loads(Path(plan.turns).read_text())[turn])

        def _switch_to(self, turn: dict) -> None:
            composed = compose(turn["overrides"])
            checks.require(composed, overrides=turn["overrides"])
            OmegaConf.resolve(composed)
            for key in (*SWITCHED, *(f"actor_rollout_ref.actor.{name}" for name in start_table.CLIPPING)):
                OmegaConf.update(self.config, key, OmegaConf.select(composed, key), merge=False)
            self.agent_name = turn.get("agent")
            self.use_topk, self.use_critic = topk.wanted(self.config), need_critic(composed)
            self.use_reference_policy = need_reference_policy(composed)
            self.kl_ctrl_in_reward = core_algos.get_kl_controller(self.config.algorithm.kl_ctrl)
            self.replay_buffer.filter_groups_metric = self._resolve_filter_groups_metric()
            self._set_loss()

        def _submit_batch_to_rollout(self, batch) -> int:
            if self.agent_name:
                batch["agent_name"] = NonTensorData(self.agent_name)
            return super()._submit_batch_to_rollout(batch)


on_import("cppo_verl.integration.trainer", _define)
