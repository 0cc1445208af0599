"""verl's synchronous trainer with exact trust-region metrics and zero-variance skipping.

``trainer.v1.trainer_mode=trust_region`` selects it, as every preset does. All but the hooks below is verl's.
"""

import functools
import logging

from omegaconf import DictConfig, OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.distillation import is_distillation_enabled
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass

from cppo_verl.integration import alarms, checks, losses, topk
from cppo_verl.integration.estimator import findings
from cppo_verl.integration.reproducible import KEY, MANAGER, LoaderOrder
from cppo_verl.integration.saving import SealedCheckpoints
from cppo_verl.integration.skip import rows_to_keep

logger = logging.getLogger(__name__)

NAME = "trust_region"
TOKEN_DENOMINATORS = ("token-mean", "token-sum")  # aggregations whose scale depends on the rows that are present


@register_trainer(NAME)
class TrustRegionTrainer(LoaderOrder, SealedCheckpoints, PPOTrainerSync):
    """Synchronous trainer; options under ``trainer.v1.trust_region``.

    Args:
        config: the composed verl config.

    Raises:
        RunConfigError: when the config cannot give a correct trust-region run.
    """

    def __init__(self, config: DictConfig):
        checks.require(config)
        self.use_topk = topk.wanted(config)
        if self.use_topk:
            topk.install(config)
        elif OmegaConf.select(config, KEY):
            with open_dict(config):
                config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = MANAGER
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl asks for this name in several places
        self.options = OmegaConf.select(config, f"trainer.v1.{NAME}", default={})
        self.zero_variance: set[str] = set()  # keys of responses whose group has zero reward variance
        self.skipped = 0
        self.gap_reported = False
        super().__init__(config)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        alarms.raise_alarm(alarms.shared_prompts(self.train_dataset, self.val_dataset, self.config.data.prompt_key))

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = self.options.get("poll_interval", buffer.poll_interval)
        return buffer

    def _setup(self) -> None:
        super()._setup()
        if not is_distillation_enabled(self.config.get("distillation")):
            actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            self.actor_rollout_wg.set_loss_fn(functools.partial(losses.trust_region_loss, config=actor_config))
        self.actor_rollout_wg.update_actor = functools.partial(self._dispatch, self.actor_rollout_wg.update_actor)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        token = findings.set([])
        keys, real = list(batch.keys), [not tag.get("is_padding", False) for tag in batch.tags]
        try:
            batch = super()._compute_advantage(batch, metrics)
            found = findings.get() or []
        finally:
            findings.reset(token)
        self.zero_variance = set()
        for groups in found:
            flags = groups.zero_variance.tolist()
            self.zero_variance = {key for key, flag in zip(keys, flags, strict=True) if flag}
            shares = [flag for flag, is_real in zip(flags, real, strict=True) if is_real]
            metrics["trust_region/zero_variance_share"] = sum(shares) / max(len(shares), 1)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._update_actor(batch, metrics)
        metrics["trust_region/skipped_responses"] = self.skipped
        if not self.gap_reported:
            delta_b = self.config.actor_rollout_ref.actor.policy_loss.get("delta_b", 0.02)
            self.gap_reported = alarms.raise_alarm(alarms.engine_gap(metrics, delta_b))
        return batch

    def _dispatch(self, update_actor, batch: KVBatchMeta):
        """The last stop before the workers: leave out what adds nothing, and make sums into metrics on the way back."""
        if self.use_topk:
            topk.ask(batch.extra_info, self.config)
        kept = self._without_zero_variance(batch)
        self.skipped = len(batch) - len(kept)
        output = update_actor(kept)
        tensordict_utils.assign_non_tensor_data(output, "metrics", losses.fold(output["metrics"]))
        return output

    def _without_zero_variance(self, batch: KVBatchMeta) -> KVBatchMeta:
        """The batch less the responses of zero-variance groups, with the same updates and denominators."""
        actor = self.config.actor_rollout_ref.actor
        droppable = [key in self.zero_variance for key in batch.keys]
        unaffected = (
            self.options.get("skip_zero_variance", True)
            and any(droppable)
            and actor.loss_agg_mode not in TOKEN_DENOMINATORS
            and not actor.use_kl_loss
            and actor.entropy_coeff == 0
            and not actor.shuffle
        )
        if not unaffected:
            return batch
        ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        updates = len(batch) // batch.extra_info["mini_batch_size"]
        multiple = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
        rows = rows_to_keep(droppable, [tag["seq_len"] for tag in batch.tags], ranks, updates, multiple)
        kept = batch.select_keys([batch.keys[row] for row in rows])
        kept.extra_info = {**batch.extra_info, "mini_batch_size": len(kept) // updates}
        return kept
