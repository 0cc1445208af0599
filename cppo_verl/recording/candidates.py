"""Rules that could have run on the recorded tokens: the one that did, each preset, one's own with thresholds to try."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cppo_verl import presets
from cppo_verl.recording.record import Header, RecordError
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import KnobError, TrustRegionKnobs, knob_names
from cppo_verl.trust_region.rules import BUILT_IN, RULES, VERL_LOSSES, knobs_of_rule

CLIPS = ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c")  # knobs of verl's losses, under actor
CLIP_DEFAULTS = (0.2, 0.2, 3.0)


@dataclass(frozen=True)
class Candidate:
    """A rule with everything that decides what it keeps.

    Attributes:
        name: what tables call it. rule: ``loss_mode``. knobs: of ours. clips: of verl's losses, by ``CLIPS``.
        ran: stands for what ran, whatever that was at each step.
    """

    name: str
    rule: str
    knobs: TrustRegionKnobs
    clips: Mapping[str, float]
    ran: bool = False

    def changed(self, values: Mapping[str, Any], name: str | None = None) -> "Candidate":
        """The same with other knobs.

        Raises:
            RecordError: for a knob that is not there or out of range.
        """
        names = knob_names(type(self.knobs))
        if unknown := [key for key in values if key not in (*names, *CLIPS)]:
            raise RecordError(f"{unknown[0]!r} is no knob of {self.rule}; there are {', '.join([*names, *CLIPS])}.")
        knobs = {**dataclasses.asdict(self.knobs), **values}
        return build(name or self.name, self.rule, knobs, {key: values.get(key, self.clips[key]) for key in CLIPS})


def build(name: str, rule: str, knobs: Mapping[str, Any], clips: Mapping[str, float]) -> Candidate:
    """A candidate of plain values; those of ``knobs`` that the rule does not have are left out.

    A rule from outside is imported: an installed one by its entry point, another one by ``rule_module`` in ``knobs``.

    Raises:
        RecordError: no such rule, or a knob out of range.
    """
    try:
        if rule not in BUILT_IN and rule not in VERL_LOSSES:
            extensions.bring(rule, knobs.get("rule_module"))
        if rule not in RULES and rule not in VERL_LOSSES:
            raise RecordError(f"{rule!r} is no rule; there are {', '.join([*RULES, *VERL_LOSSES])}.")
        kind = knobs_of_rule(rule)
        return Candidate(name, rule, kind(**{key: knobs[key] for key in knob_names(kind) if key in knobs}), dict(clips))
    except KnobError as error:
        raise RecordError(str(error)) from error


def recorded(header: Header) -> Candidate:
    """The rule that ran."""
    made = build(f"{header.rule}, as it ran", header.rule, header.knobs, _clips(header))
    return dataclasses.replace(made, ran=True)


def fixed(candidate: Candidate) -> Candidate:
    """The same as a rule of its own, which no longer stands for what ran at each step."""
    return dataclasses.replace(candidate, ran=False)


def of_preset(preset: str, header: Header) -> Candidate:
    """A preset as it would have been composed into this run.

    Raises:
        RecordError: there is no such preset.
    """
    if preset not in presets.names():
        raise RecordError(f"{preset!r} is no preset; there are {', '.join(presets.names())}.")
    actor = presets.settings(preset)["actor_rollout_ref"]["actor"]
    knobs = dict(actor["policy_loss"])
    for name, value in knobs.items():
        if "${" in str(value):  # Hydra's interpolations: of the run
            knobs[name] = header.knobs.get(name)
    knobs["topk"] = header.knobs.get("topk", knobs.get("topk"))  # the K that was recorded
    clips = {name: float(actor.get(name, default)) for name, default in zip(CLIPS, CLIP_DEFAULTS, strict=True)}
    return build(preset, str(knobs["loss_mode"]), knobs, clips)


def of_rule(rule: str, assignments: Sequence[str], header: Header) -> Candidate:
    """A rule under the run's knobs, changed by ``KEY=VALUE`` texts; the values are YAML, as Hydra takes them.

    ``rule_module=my_rule.py`` brings a rule of one's own, as in a run.

    Raises:
        RecordError: no such rule or knob, a value out of range, or a text of another form.
    """
    values = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator:
            raise RecordError(f"--set {text}: write it as KEY=VALUE, such as delta=0.2.")
        values[key.rpartition(".")[2]] = _value(value)
    knobs = dict(header.knobs)
    if "rule_module" in values:
        knobs["rule_module"] = extensions.resolve(str(values.pop("rule_module")), [Path.cwd()])
    name = " ".join([rule, *(f"{key}={value}" for key, value in values.items())])
    return build(rule, rule, knobs, _clips(header)).changed(values, name)


def _clips(header: Header) -> dict[str, float]:
    return dict(zip(CLIPS, (header.clip_low, header.clip_high, header.clip_cap), strict=True))


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
