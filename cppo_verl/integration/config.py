"""The typed form of ``actor_rollout_ref.actor.policy_loss`` that the presets select by ``_target_``."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from verl.workers.config import PolicyLossConfig

from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError, TrustRegionKnobs, knob_names
from cppo_verl.trust_region.rules import knobs_of_rule


@dataclass
class TrustRegionLossConfig(TrustRegionKnobs, PolicyLossConfig):
    """verl's policy-loss keys and ours (see ``TrustRegionKnobs``); refuses what is out of range.

    Making one, in any process, brings in the rule that it names: verl makes it from the run's config in the driver and
    in each worker. For a rule with knobs of its own the instance is of a class that has those as well.

    Attributes:
        rule_module: where a rule from outside is: a module's name, or the absolute path of a ``.py`` file.

    Raises:
        KnobError: naming every knob that is out of range, or why ``rule_module`` brings no rule.
    """

    loss_mode: str = "cppo"
    rule_module: str | None = None

    def __new__(cls, *_: Any, loss_mode: str = "cppo", rule_module: str | None = None, **__: Any):
        extensions.bring(loss_mode, rule_module)
        return super().__new__(config_class(loss_mode))

    def __reduce__(self):
        # by its values, so that a process that unpickles it brings in the rule too
        return partial(TrustRegionLossConfig, **{each.name: getattr(self, each.name) for each in fields(self)}), ()


_CLASSES: dict[type[TrustRegionKnobs], type[TrustRegionLossConfig]] = {TrustRegionKnobs: TrustRegionLossConfig}


def config_class(loss_mode: str) -> type[TrustRegionLossConfig]:
    """The class of the rule's config.

    Raises:
        KnobError: a knob of the rule's own has a name of verl's.
    """
    own = knobs_of_rule(loss_mode)
    if own not in _CLASSES:
        verls = {each.name for each in fields(TrustRegionLossConfig)} - set(knob_names())
        if taken := verls.intersection(knob_names(own)):
            name = min(taken)
            raise KnobError(f"{KEY_PREFIX}.{name} is a key of verl's: give the knob of {own.__name__} another name.")
        _CLASSES[own] = dataclass(type(f"{own.__name__}Config", (own, TrustRegionLossConfig), {"__module__": __name__}))
    return _CLASSES[own]


def knobs_of(actor_config) -> TrustRegionLossConfig:
    """The trust-region knobs of verl's actor config.

    Raises:
        KnobError: when ``policy_loss`` is not our dataclass, i.e. ``loss_mode`` was set without a preset.
    """
    knobs = None if actor_config is None else actor_config.policy_loss
    if isinstance(knobs, TrustRegionLossConfig):
        return knobs
    raise KnobError(
        f"{KEY_PREFIX}.loss_mode={getattr(knobs, 'loss_mode', None)!r} needs the trust-region knobs beside it. Compose "
        f"a preset (+trust_region=cppo), or set +{KEY_PREFIX}._target_={__name__}.{TrustRegionLossConfig.__name__}."
    )
