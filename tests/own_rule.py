"""A rule from outside as the tests write it to disk: its file, its preset, and both as an installed package."""

from pathlib import Path

RULE = """
from dataclasses import dataclass

from cppo_verl.trust_region.gate import Verdict
from cppo_verl.trust_region.knobs import TrustRegionKnobs, knob
from cppo_verl.trust_region.rules import rule


@dataclass
class OwnKnobs(TrustRegionKnobs):
    grace: int = knob(2, low=0)


@rule("{name}", knobs=OwnKnobs)
def own(tokens, divergence, knobs):
    over = divergence > knobs.delta
    cut = over.cumsum(-1) > knobs.grace
    return Verdict(tokens.toward_rollout | ~cut, over_token=over & cut)
"""
PRESET = """# @package _global_
defaults:
  - base
  - _self_
actor_rollout_ref:
  actor:
    policy_loss:
      loss_mode: {name}
      rule_module: {module}
      grace: 3
"""


def write(folder: Path, name: str = "own") -> Path:
    """``folder/NAME.py`` and ``folder/trust_region/NAME.yaml``; the rule's file."""
    (folder / "trust_region").mkdir(parents=True, exist_ok=True)
    (folder / "trust_region" / f"{name}.yaml").write_text(PRESET.format(name=name, module=f"{name}.py"))
    (folder / f"{name}.py").write_text(RULE.format(name=name))
    return folder / f"{name}.py"


def write_package(folder: Path, package: str, name: str = "own") -> None:
    """The same as an importable package with the entry point that pip would have left."""
    inside = folder / package / "conf" / "trust_region"
    inside.mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    (folder / package / "rule.py").write_text(RULE.format(name=name))
    (inside / f"{name}.yaml").write_text(PRESET.format(name=name, module="null"))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cppo_verl.rules]\n{name} = {package}.rule\n")
