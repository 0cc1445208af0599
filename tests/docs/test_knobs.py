"""The knobs' one declaration beside the two files that repeat it: the presets' base and the table of docs/rules.md."""

import re

from cppo_verl import presets
from cppo_verl.trust_region.knobs import Limits, TrustRegionKnobs, limits_of
from cppo_verl.trust_region.rules import RULES, VERL_LOSSES
from tests import ROOT, pages

# where the presets know more than the declaration
DEFAULTS = vars(TrustRegionKnobs()) | {"max_response_length": "${data.max_response_length}"}


def row(name: str, limits: Limits) -> str:
    """A knob's line in the table."""
    default = DEFAULTS[name]
    shown = "null" if default is None else f"`{default}`" if isinstance(default, str) else f"{default:g}"
    values = f"`{' '.join(limits.choices)}`" if limits.choices else limits.interval()
    kind = "whole number" if limits.kind is int else ""
    values = " ".join(filter(None, [kind, "in" if kind and values else "", values, "or null" if limits.null else ""]))
    return f"| `{name}` | {shown} | {values} | {limits.doc} |"


def test_the_table_is_the_declaration():
    table = pages.text("rules.md").partition("| knob | default")[2].partition("## Metrics")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `loss_mode` |")
    assert all(name in rows[0].replace("`", " ").split() for name in (*RULES, *VERL_LOSSES))
    assert rows[1:] == [row(name, limits) for name, limits in limits_of().items()]


def test_the_base_preset_has_the_declared_defaults():
    base = presets.section("base", (), "actor_rollout_ref.actor.policy_loss")
    assert {name: base[name] for name in DEFAULTS} == DEFAULTS
    text = (ROOT / "cppo_verl/conf/trust_region/base.yaml").read_text(encoding="utf-8")
    assert [name for name in re.findall(r"^      (\w+):", text, re.M) if name in limits_of()] == list(limits_of())
