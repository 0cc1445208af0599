"""docs/extending.md to the letter: its files and commands in an empty folder, three steps of the real stack."""

import math
from pathlib import Path

from omegaconf import OmegaConf

from .runs import P, records


def test_the_pages_rule_trains_three_steps(own_rule: Path):
    steps = {record["step"]: record["data"] for record in records(own_rule) if record["step"] > 0}
    assert sorted(steps) == [1, 2, 3]
    for step in steps.values():
        assert step["trust_region/zero_variance_share"] < 1
        assert math.isfinite(step["actor/grad_norm"]) and step["actor/grad_norm"] > 0
        assert step[P + "first_update/divergence_mean"] < 1e-6 < step[P + "divergence_mean"]
        assert P + "effective_delta_b" not in step
        parts = step[P + "masked_share_token_threshold"] + step[P + "masked_share_prefix_budget"]
        assert abs(step[P + "masked_share"] - parts) < 1e-6
    assert any(step[P + "masked_share"] > 0 for step in steps.values())


def test_it_was_the_pages_rule_with_the_pages_knobs(own_rule: Path):
    knobs = OmegaConf.load(own_rule / "config.yaml").actor_rollout_ref.actor.policy_loss
    assert (knobs.loss_mode, knobs.delta, knobs.grace) == ("cutoff", 0.1, 2)
    assert Path(knobs.rule_module).is_file() and Path(knobs.rule_module).name == "cutoff.py"
    report = (own_rule / "report/report.md").read_text()
    assert "cutoff" in report and "grace" in report
