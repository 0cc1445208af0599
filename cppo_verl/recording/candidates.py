"""Rules that could have run on the recorded tokens: the one that did, each preset, one's own with thresholds to try."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cppo_verl import presets
from cppo_verl.recording.record import Header, RecordError
from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import KnobError, Limits, TrustRegionKnobs, knob_names
from cppo_verl.trust_region.rules import BUILT_IN, RULES, VERL_LOSSES, knobs_of_rule

CLIPS = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}  # of verl's losses, under actor


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
        """The same with other knobs, as a rule of its own that no longer stands for what ran.
        RecordError for a knob that is not there or out of range."""
        names = [*knob_names(type(self.knobs)), *CLIPS]
        if unknown := [key for key in values if key not in names]:
            raise RecordError(f"{unknown[0]!r} is no knob of {self.rule}; there are {', '.join(names)}.")
        return build(name or self.name, self.rule, {**dataclasses.asdict(self.knobs), **self.clips, **values})


def build(name: str, rule: str, values: Mapping[str, Any]) -> Candidate:
    """A candidate of plain values; those that the rule does not have are left out.

    A rule from outside is imported: an installed one by its entry point, another one by ``rule_module`` in ``values``.
    RecordError: no such rule, or a knob out of range.
    """
    try:
        if rule not in BUILT_IN and rule not in VERL_LOSSES:
            extensions.bring(rule, values.get("rule_module"))
        if rule not in RULES and rule not in VERL_LOSSES:
            raise RecordError(f"{rule!r} is no rule; there are {', '.join([*RULES, *VERL_LOSSES])}.")
        for key in CLIPS:
            if fault := Limits(float).fault(values[key]):
                raise RecordError(f"{key}={values[key]!r} {fault}.")
        kind = knobs_of_rule(rule)
        knobs = kind(**{key: values[key] for key in knob_names(kind) if key in values})
        return Candidate(name, rule, knobs, {key: float(values[key]) for key in CLIPS})
    except KnobError as error:
        raise RecordError(str(error)) from error


def recorded(header: Header) -> Candidate:
    """The rule that ran."""
    return dataclasses.replace(build(f"{header.rule}, as it ran", header.rule, _values_of(header)), ran=True)


def of_preset(preset: str, header: Header) -> Candidate:
    """A preset as it would have been composed into this run. RecordError: there is no such preset."""
    if preset not in presets.names():
        raise RecordError(f"{preset!r} is no preset; there are {', '.join(presets.names())}.")
    actor = presets.settings(preset)["actor_rollout_ref"]["actor"]
    knobs = dict(actor["policy_loss"])
    for name, value in knobs.items():
        if "${" in str(value):  # Hydra's interpolations: of the run
            knobs[name] = header.knobs.get(name)
    knobs["topk"] = header.knobs.get("topk", knobs.get("topk"))  # the K that was recorded
    return build(preset, str(knobs["loss_mode"]), {**CLIPS, **actor, **knobs})


def of_rule(rule: str, assignments: Sequence[str], header: Header) -> Candidate:
    """A rule under the run's knobs, changed by ``KEY=VALUE`` texts; the values are YAML, as Hydra takes them.

    ``rule_module=my_rule.py`` brings a rule of one's own, as in a run.
    RecordError: no such rule or knob, a value out of range, or a text of another form.
    """
    values = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator:
            raise RecordError(f"--set {text}: write it as KEY=VALUE, such as delta=0.2.")
        try:
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise RecordError(f"--set {text}: {' '.join(str(error).split())}.") from None
        values[key.rpartition(".")[2]] = read["value"]
    run = _values_of(header)
    if "rule_module" in values:
        run["rule_module"] = extensions.resolve(str(values.pop("rule_module")), [Path.cwd()])
    name = " ".join([rule, *(f"{key}={value}" for key, value in values.items())])
    return build(rule, rule, run).changed(values, name)


def _values_of(header: Header) -> dict[str, Any]:
    return {**header.knobs, **dict(zip(CLIPS, (header.clip_low, header.clip_high, header.clip_cap), strict=True))}
