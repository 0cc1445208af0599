"""The runs that people have, as arguments behind a preset, and what the log of each has to say."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .runs import P

ACTOR = "actor_rollout_ref.actor."
KL = (ACTOR + "use_kl_loss=True", ACTOR + "kl_loss_coef=0.001")
SKIPS, SHARE = "trust_region/skipped_responses", "trust_region/zero_variance_share"
GRPO = "algorithm.adv_estimator=grpo"


@dataclass(frozen=True)
class Family:
    """Arguments behind a preset; metrics that a step has, and has not; what else must hold of it.

    ``said`` are words of the table that is printed at its start. ``all_taught``: no response may be left out.
    """

    arguments: tuple[str, ...]
    there: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    holds: Callable[[dict], bool] = field(default=lambda step: True)
    preset: str = "cppo"
    all_taught: bool = True
    agent: str | None = None


def multiple_of(unit: float) -> Callable[[dict], bool]:
    """Whether the largest advantage is one that rewards of -1 and 1 in groups of four give without a deviation."""
    return lambda step: abs(step["critic/advantages/max"] / unit - round(step["critic/advantages/max"] / unit)) < 1e-4


FAMILIES = {
    "grpo_estimator": Family((GRPO,), (SHARE,), ("actor/kl_loss",), ("still left out",), all_taught=False),
    "grpo_kl": Family((GRPO, *KL), (SHARE, "actor/kl_loss"), (), ("the loss has a KL term", "because of")),
    "dr_grpo": Family(
        (GRPO, "algorithm.norm_adv_by_std_in_grpo=False"), (SHARE,), holds=multiple_of(0.5), all_taught=False
    ),
    "rloo": Family(("algorithm.adv_estimator=rloo",), (SHARE,), holds=multiple_of(2 / 3), all_taught=False),
    "reinforce_plus_plus": Family(
        ("algorithm.adv_estimator=reinforce_plus_plus",), (), (SHARE,), ("because of algorithm.adv_estimator",)
    ),
    "dapo": Family(
        (GRPO, "algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=score")
        + (ACTOR + "clip_ratio_high=0.28", ACTOR + "clip_ratio_c=10", ACTOR + "loss_agg_mode=token-mean"),
        (SHARE,),
        (),
        ("clip_ratio_high=0.28 is not looked at", "loss_agg_mode=token-mean"),
        lambda step: step[SHARE] == 0,  # such groups were asked for again
    ),
    "clip_higher": Family(
        (GRPO, ACTOR + "clip_ratio_high=0.3"), (SHARE,), (P + "effective_delta_b",),
        ("rule vanilla", "clip_ratio_high=0.3 (preset: 0.28)"), preset="grpo", all_taught=False,
    ),
    "entropy": Family((ACTOR + "entropy_coeff=0.001",), ("actor/entropy_loss",), (), ("entropy term",)),
    "token_mean": Family((ACTOR + "loss_agg_mode=token-mean",), (SHARE,), (), ("loss_agg_mode=token-mean",)),
    "kl_in_reward": Family(
        ("algorithm.use_kl_in_reward=True",), ("actor/reward_kl_penalty",), (), ("rewards carry a KL penalty",)
    ),
    "topk_kl": Family(KL, ("actor/kl_loss", P + "topk_mass"), (), ("estimator=topk",), preset="cppo_topk"),
    "gae": Family(
        ("algorithm.adv_estimator=gae",), ("critic/vf_loss",), (SHARE,), ("because of algorithm.adv_estimator=gae",)
    ),
    "tools": Family((), ("training/num_turns/mean",), holds=lambda step: step["num_turns/max"] == 4, all_taught=False,
                    agent="holes"),
}  # fmt: skip
LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=16")
LORA_FAMILIES = {
    "lora": Family((GRPO, *LORA), (SHARE,), (P + "topk_mass",), ("still left out",), all_taught=False),
    "lora_topk_kl": Family((*KL, *LORA), ("actor/kl_loss", P + "topk_mass"), preset="cppo_topk"),
}
