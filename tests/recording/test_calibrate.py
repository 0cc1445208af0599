"""Calibrate: thresholds give the share, on held-back groups too; the gap's multiples by hand; what cannot be said."""

import numpy as np
import pytest

from cppo_verl.cli.main import main
from cppo_verl.recording import batches, calibrate, candidates
from cppo_verl.recording.calibrate import Family, family_of
from cppo_verl.recording.record import RecordError, StepRecord
from tests.recording.synthetic import run, step_record, with_look


def family(parts, *hold: str, preset: str | None = None) -> Family:
    header = parts[0].header
    return family_of(parts, candidates.of_preset(preset, header) if preset else candidates.recorded(header), hold)


def recorded(steps: int, seed: int = 0, **options) -> list[batches.Batch]:
    return batches.batches(step_record(step, seed=seed, **options) for step in range(1, steps + 1))


@pytest.mark.parametrize(
    ("preset", "hold", "moving"),
    [
        ("cppo", ("delta",), ("delta_b",)),
        ("cppo_soft", (), ("delta", "delta_b")),
        ("dppo_kl", (), ("delta",)),
        ("grpo", (), ("clip_ratio_low", "clip_ratio_high")),
    ],
)
def test_the_thresholds_mask_what_was_asked_for(preset, hold, moving):
    members = family(recorded(10, length=100, groups=4), *hold, preset=preset)
    found = calibrate.for_share(members, 0.08)
    assert tuple(found.thresholds) == moving
    assert found.share.value == pytest.approx(0.08, rel=0.02)
    assert all(x.low <= x.value <= x.high for x in (*found.thresholds.values(), found.share))
    assert found.share.holds(0.08)
    # as pasted: the printed numbers, through a replay of their own
    said = [override.split("=") for override in found.overrides()]
    again = members.base.changed({key.rpartition(".")[2]: float(value) for key, value in said})
    assert members.masked_by(again).sum() / members.tokens.sum() == found.share.value
    if hold:
        assert getattr(found.candidate.knobs, hold[0]) == getattr(members.base.knobs, hold[0])
    elif len(moving) == 2 and preset.startswith("cppo"):  # one factor for both
        ratio = found.candidate.knobs.delta / found.candidate.knobs.delta_b
        assert ratio == pytest.approx(0.15 / 0.02, rel=1e-3)


def test_a_knob_of_ones_choice_moves_within_its_range():
    """``budget_cap`` is 1 or more, whatever the factor."""
    parts = recorded(10, length=100, groups=4)
    members = family_of(parts, candidates.recorded(parts[0].header), move=["budget_cap"])
    least, most = members.share(1e9), members.share(1e-9)
    found = calibrate.for_share(members, (least + most) / 2)
    assert list(found.thresholds) == ["budget_cap"] and found.share.value == pytest.approx((least + most) / 2, rel=0.02)


def test_held_back_groups_get_the_share_within_the_interval():
    """95% of records should; of 4, fewer than 3 would by chance once in seventy times."""
    parts = [recorded(12, seed=seed, length=60, size=2, groups=3) for seed in range(4)]
    assert sum(calibrate.for_share(family(p), 0.1, i).held_back.holds(0.1) for i, p in enumerate(parts)) >= 3


def test_the_gap_by_hand():
    """Four responses of the first update with w = 1: mean and 99th percentile of abs(pi - mu), halved."""
    record = step_record(length=50, groups=2, budget="fixed", weights="constant")
    first = [r for r in record.responses if r.first.update == 0 and (r.advantages[r.mask] != 0).any()]
    gaps = np.concatenate([np.abs(np.exp(r.first.log_pi) - np.exp(r.log_mu))[r.mask] for r in first])
    found = calibrate.above_gap(family(batches.batches([record])), 0.5)
    assert found.thresholds["delta_b"].value == pytest.approx(0.5 * gaps.mean(), rel=1e-3)
    assert found.thresholds["delta"].value == pytest.approx(0.5 * np.sort(gaps)[-(len(gaps) // 100) - 1], rel=0.05)
    assert found.wanted is None and found.held_back is None
    assert "first update" in found.warnings[0]


def test_what_cannot_be_calibrated_is_said():
    record = step_record(length=100)
    parts, ran = batches.batches([record]), candidates.recorded(record.header)
    late = batches.batches([StepRecord(record.header, tuple(with_look(r, update=1) for r in record.responses))])
    for refused, sentence in (
        (lambda: calibrate.for_share(family(parts), 0.95), "no delta and delta_b of cppo masks 0.95 of these tokens: "),
        (lambda: family(parts, preset="cispo"), "masks none of these tokens at any threshold"),
        (lambda: family(parts, "w_min"), "--hold w_min: what decides here is delta, delta_b"),
        (lambda: family(parts, "delta", "delta_b"), "leaves no threshold"),
        (lambda: family_of([], ran), "no response was recorded"),
        (lambda: family_of(parts, ran, move=["detla"]), "--move detla: that is no threshold; there are clip_ratio_low"),
        (lambda: family_of(parts, ran, move=["weights"]), "--move weights: that is no threshold"),
        (lambda: family_of(parts, ran, move=["budget_target"]), "--move budget_target: that is no threshold"),
        (lambda: calibrate.above_gap(family(parts, preset="grpo"), 3), "compares ratios"),
        (lambda: calibrate.above_gap(family(parts), 1000), "outside"),
        (lambda: calibrate.above_gap(family(late), 3), "no recorded response was seen by the first update"),
    ):
        with pytest.raises(RecordError, match=sentence):
            refused()
    assert "the record is too small" in calibrate.for_share(family(parts), 0.1).warnings[0]
    whole = calibrate.for_share(family(parts, preset="trm_avg"), 0.3)
    assert any("the share jumps here" in warning for warning in whole.warnings)


def test_the_command_prints_overrides(tmp_path, capsys):
    run(tmp_path, steps=4, length=60)
    goal = ["--masked-share", "0.05"]
    assert main(["calibrate", str(tmp_path), *goal]) == 0
    out = capsys.readouterr().out
    assert "actor_rollout_ref.actor.policy_loss.delta=" in out and "Masks change the data that follow" in out
    assert "held back" in out
    assert main(["calibrate", str(tmp_path), *goal, "--rule", "dppo", "--set", "divergence=kl"]) == 0
    assert "policy_loss.delta=" in capsys.readouterr().out
    assert main(["calibrate", str(tmp_path / "none"), *goal]) == 1
    assert "holds no record: run with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["calibrate", str(tmp_path), "--masked-share", "3"])
    assert "write 1% as 0.01" in capsys.readouterr().err
