"""The typed form of ``actor_rollout_ref.actor.policy_loss`` that the presets select by ``_target_``."""

from dataclasses import dataclass

from verl.workers.config import PolicyLossConfig

from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs


@dataclass
class TrustRegionLossConfig(TrustRegionKnobs, PolicyLossConfig):
    """verl's policy-loss keys and ours (see ``TrustRegionKnobs``); refuses what is out of range.

    Raises:
        KnobError: naming every knob that is out of range.
    """

    loss_mode: str = "cppo"


def knobs_of(actor_config) -> TrustRegionLossConfig:
    """The trust-region knobs of verl's actor config.

    Raises:
        KnobError: when ``policy_loss`` is not our dataclass, i.e. ``loss_mode`` was set without a preset.
    """
    knobs = None if actor_config is None else actor_config.policy_loss
    if isinstance(knobs, TrustRegionLossConfig):
        return knobs
    mode = getattr(knobs, "loss_mode", None)
    raise KnobError(
        f"{KEY_PREFIX}.loss_mode={mode!r} needs the trust-region knobs beside it. Compose a preset "
        f"(+trust_region=cppo), or set +{KEY_PREFIX}._target_=cppo_verl.integration.config.TrustRegionLossConfig."
    )
