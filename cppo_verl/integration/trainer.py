"""verl's trainers with exact trust-region metrics, zero-variance skipping, top-K, alarms and sealed checkpoints.

``trainer.v1.trainer_mode=trust_region`` selects it, as every preset does; ``trainer.v1.trust_region.mode`` says which
of verl's trainers it goes over. All but the hooks below is verl's.
"""

import functools
from collections.abc import Mapping, Sequence

import torch
import transfer_queue
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.distillation import is_distillation_enabled
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.debug import marked_timer
from verl.utils.metric import reduce_metrics

from cppo_verl.integration import alarms, checks, estimator, looks, losses, skip, topk
from cppo_verl.integration.config import TrustRegionLossConfig, knobs_of
from cppo_verl.integration.recorder import Call, Recorder
from cppo_verl.integration.reproducible import MANAGER, LoaderOrder
from cppo_verl.integration.saving import SealedCheckpoints
from cppo_verl.trust_region.thresholds import next_scale


def measure_from_the_steps_start(config: DictConfig) -> None:
    """``anchor=proximal``: the trust region is measured from the trained policy at the start of the step.

    verl's decoupled mode recomputes ``old_log_probs`` with those weights, and its rollout correction brings the way
    from mu to there as a truncated importance weight a token, unless a user has chosen another.
    """
    with open_dict(config):
        correction = config.algorithm.rollout_correction
        correction.bypass_mode = False
        if correction.get("rollout_is") is None:
            correction.rollout_is = "token"


class TrustRegion(LoaderOrder, SealedCheckpoints, PPOTrainer):
    """What a trust region adds to each of verl's trainers; options under ``trainer.v1.trust_region``.

    Raises:
        RunConfigError: when the composed ``config`` cannot give a correct trust-region run.
    """

    def __init__(self, config: DictConfig):
        checks.require(config)
        self.options = OmegaConf.select(config, checks.OPTIONS, default={})
        self.use_topk = topk.wanted(config)
        if self.use_topk:
            topk.install(config)
        if checks.is_proximal(config):
            measure_from_the_steps_start(config)
        with open_dict(config):
            if self.options.get("reproducible"):
                config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = MANAGER
            config.trainer.v1.trainer_mode = checks.mode_of(config)  # verl asks for this name in several places
        self.zero_variance: set[str] = set()  # keys of responses whose group has zero reward variance
        self.skipped = 0
        self.reported: list[Mapping[str, list]] = []  # the workers' sums of each call of ``update_actor`` in a step
        self.knobs: TrustRegionLossConfig
        self.alarmed = False
        self.recorder: Recorder | None = None
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
        self._set_loss()
        self.actor_rollout_wg.update_actor = functools.partial(self._dispatch, self.actor_rollout_wg.update_actor)
        if self.options.get("record", 0):
            self.recorder = Recorder(self.config, self.tokenizer)

    def _set_loss(self) -> None:
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.knobs = knobs_of(actor)
        if not is_distillation_enabled(self.config.get("distillation")):
            self.actor_rollout_wg.set_loss_fn(functools.partial(losses.trust_region_loss, config=actor))

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        name = str(self.config.algorithm.adv_estimator)
        self.zero_variance = set()
        if name not in skip.GROUPED:
            return batch
        field = "token_level_rewards" if self.config.algorithm.use_kl_in_reward else "rm_scores"
        rewards = torch.stack([row.sum() for row in _stored(batch, field)])
        sessions = (batch.keys, rewards, self.config.algorithm)
        advantages = estimator.session_advantages(*sessions) if name == skip.OURS else None
        if advantages is not None:
            masks = _stored(batch, "response_mask")
            rows = [one * mask for one, mask in zip(advantages, masks, strict=True)]
            nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
            batch = _with_fields(batch, advantages=nested, returns=nested)
        flags = skip.zero_variance(batch.keys, rewards.tolist(), name)
        self.zero_variance = {key for key, flag in zip(batch.keys, flags, strict=True) if flag}
        real = [flag for flag, padding in zip(flags, _is_padding(batch), strict=True) if not padding]
        metrics["trust_region/zero_variance_share"] = sum(real) / max(len(real), 1)
        return batch

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.use_topk and checks.is_proximal(self.config):
            topk.ask(batch.extra_info, self.config)  # the recompute pass gathers the proximal policy's log-probs too
        return super()._compute_old_log_prob(batch, metrics)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.trainer_mode != "sync":
            behind = torch.tensor([self.global_steps - 1 - int(tag["min_global_steps"]) for tag in batch.tags])
            spans = torch.tensor([tag["max_global_steps"] > tag["min_global_steps"] for tag in batch.tags])
            metrics["trust_region/responses_spanning_versions"] = spans.float().mean().item()
            batch = _with_fields(batch, **{losses.BEHIND: behind})
        return super()._update_actor(batch, metrics)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        self.reported, self.skipped, scale = [], 0, self.scale
        batch = super().step(metrics, timing_raw)
        metrics["trust_region/skipped_responses"] = self.skipped
        if len(self.reported) > 1:  # verl averages the averages of a step's calls
            metrics.update(reduce_metrics(losses.fold(*self.reported)))
        self._steer(metrics)
        if not self.alarmed:
            stale = self.trainer_mode != "sync"
            self.alarmed = alarms.raise_alarm(alarms.spent(metrics, scale * self.knobs.delta_b, stale))
        return batch

    def _steer(self, metrics: dict) -> None:
        """``budget_target``: the thresholds of the next step, from the exact masked share of this one."""
        target = self.knobs.budget_target
        if target is None:
            return
        metrics["trust_region/threshold_scale"] = self.scale
        if any(sum(part.get(losses.COUNT_PREFIX + "tokens", [])) for part in self.reported):  # that could be masked
            self.scale = next_scale(self.scale, float(metrics[losses.PREFIX + "masked_share"]), target)

    def _dispatch(self, update_actor, batch: KVBatchMeta):
        """The last stop before the workers: leave out what adds nothing, and make sums into metrics on the way back."""
        if self.use_topk:
            topk.ask(batch.extra_info, self.config)
        batch.extra_info[losses.SCALE] = self.scale
        ranks, drawn = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1, None
        kept = self._without_zero_variance(batch, ranks)
        self.skipped += len(batch) - len(kept)
        if self.recorder is not None:
            which = self.local_trigger_step, self.parameter_sync_step
            call = Call(self.global_steps, self.loader_places, self.zero_variance, ranks, self.scale, *which)
            with marked_timer("record", self.timing_raw):
                kept, drawn = self.recorder.mark(kept, call)
        output = update_actor(kept)
        reported = output["metrics"]
        seen = reported.pop(looks.METRIC, [])
        if self.recorder is not None and drawn is not None:
            with marked_timer("record", self.timing_raw):
                self.recorder.write(drawn, seen)
        self.reported.append({k: v for k, v in reported.items() if k.startswith(losses.PREFIX)})
        tensordict_utils.assign_non_tensor_data(output, "metrics", losses.fold(reported))
        return output

    def _without_zero_variance(self, batch: KVBatchMeta, ranks: int) -> KVBatchMeta:
        """The batch less the responses of zero-variance groups, with the same updates and denominators."""
        droppable = [key in self.zero_variance or pad for key, pad in zip(batch.keys, _is_padding(batch), strict=True)]
        if not any(droppable) or any(skip.obstacles(self.config)):
            return batch
        actor = self.config.actor_rollout_ref.actor
        updates = len(batch) // batch.extra_info["mini_batch_size"]
        multiple = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
        rows = skip.rows_to_keep(droppable, [tag["seq_len"] for tag in batch.tags], ranks, updates, multiple)
        kept = batch.select_keys([batch.keys[row] for row in rows])
        kept.extra_info = {**batch.extra_info, "mini_batch_size": len(kept) // updates}
        return kept


def _is_padding(batch: KVBatchMeta) -> list[bool]:
    """Of each row, whether verl added it to make the batch divisible; its mask is empty."""
    return [tag.get("is_padding", False) for tag in batch.tags]


def _stored(batch: KVBatchMeta, field: str) -> Sequence[torch.Tensor]:
    """A field of the batch in TransferQueue, a tensor a response."""
    where = {"keys": batch.keys, "partition_id": batch.partition_id}
    return transfer_queue.kv_batch_get(**where, select_fields=[field])[field].unbind()


def _with_fields(batch: KVBatchMeta, **fields: torch.Tensor) -> KVBatchMeta:
    columns = TensorDict(fields, batch_size=len(batch))
    return transfer_queue.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=columns)


class SyncTrainer(TrustRegion, PPOTrainerSync):
    """``mode=sync``."""


class ColocateAsyncTrainer(TrustRegion, PPOTrainerColocateAsync):
    """``mode=colocate_async``."""


class SeparateAsyncTrainer(TrustRegion, PPOTrainerSeparateAsync):
    """``mode=separate_async``."""


MODES: dict[str, type[TrustRegion]] = dict(
    zip(checks.MODES, (SyncTrainer, ColocateAsyncTrainer, SeparateAsyncTrainer), strict=True)
)


@register_trainer("trust_region")
class TrustRegionTrainer(PPOTrainer):
    """What verl finds under the name: calling it makes the trainer of the mode, whose checks know an unknown one."""

    def __new__(cls, config: DictConfig):
        return MODES.get(checks.mode_of(config), SyncTrainer)(config)
