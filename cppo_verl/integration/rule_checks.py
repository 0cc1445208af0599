"""Whether the rule that a run names is there, and its knobs are ones that it has, within their ranges."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from cppo_verl.integration.config import TrustRegionLossConfig, config_class
from cppo_verl.integration.losses import require_registered
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import GATES, KEY_PREFIX, KnobError, knob_names
from cppo_verl.trust_region.rules import RULES, VERL_LOSSES, capability, knobs_of_rule


def problems(knobs: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each thing that is wrong with ``actor_rollout_ref.actor.policy_loss``."""
    yield from _rule_problems(knobs)
    yield from _knob_problems(knobs)
    yield from _idle_knob_problems(knobs)


def _rule_problems(knobs: Mapping[str, Any]) -> Iterator[str]:
    """A rule from outside is brought into this process for it."""
    mode, module = str(knobs.get("loss_mode")), knobs.get("rule_module")
    try:
        extensions.bring(mode, module)
        config_class(mode)
        if mode in extensions.from_outside():
            require_registered(mode)
    except KnobError as error:
        yield str(error)
        return
    if mode not in RULES and mode not in VERL_LOSSES:
        yield extensions.unknown_rule(mode, module)
    elif module and mode not in extensions.from_outside():
        yield f"{extensions.KEY}={module} has no effect under loss_mode={mode}; set {KEY_PREFIX}.loss_mode to its rule."


def _knob_problems(knobs: Mapping[str, Any]) -> Iterator[str]:
    kind = knobs_of_rule(str(knobs.get("loss_mode")))
    ours, verls = knob_names(kind), [field.name for field in dataclasses.fields(TrustRegionLossConfig)]
    for name in knobs:
        if name not in ours and name not in verls:
            yield f"{KEY_PREFIX}.{name}={knobs[name]!r} is no knob; there are {', '.join(ours)}."
    try:
        kind(**{name: knobs[name] for name in ours if name in knobs})
    except KnobError as error:
        yield from str(error).splitlines()


def _idle_knob_problems(knobs: Mapping[str, Any]) -> Iterator[str]:
    """A gate or a trace that the rule would not look at."""
    mode = str(knobs.get("loss_mode"))
    can, gate, steps = capability(mode), knobs.get("gate", "hard"), knobs.get("trace", 1)
    if gate in GATES and gate not in can.gates:
        having = " and ".join(sorted(name for name in RULES if gate in capability(name).gates))
        yield f"{KEY_PREFIX}.gate={gate} has no effect under loss_mode={mode}; set it to hard. {having} have gates."
    if can.own_weight and isinstance(steps, int) and steps > 1:
        yield (
            f"{KEY_PREFIX}.trace={steps} has no effect under loss_mode={mode}, which has a weight of its own; set it "
            "to 1."
        )
