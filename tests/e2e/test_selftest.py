"""A stage of ``cppo-verl selftest`` through the real stack, in which the rollout engine never gets new weights."""

import shutil

from cppo_verl.selftest.stage import FAILS, HOLDS
from tests import ROOT
from tests.e2e.runs import Work
from tests.selftest import selftest

WEIGHTS = "first-update gap, later: weights exchanged"


def test_weights_that_are_not_exchanged_are_found_and_nothing_else_is(work: Work, tmp_path):
    shutil.copytree(work.data, tmp_path / "out/tiny/data")
    shutil.copytree(work.model, tmp_path / "out/tiny/model")
    outside = {"PYTHONPATH": str(ROOT), "VERL_USE_EXTERNAL_MODULES": "tests.selftest.injected.weights_kept"}
    arguments = ["--stages", "one-binary", "--steps", "3"]
    status, results, said = selftest(tmp_path / "out", *arguments, **outside)
    assert status == 1, said
    assert results["tiny"]["verdict"] == HOLDS
    rows = {row["what"]: row for row in results["one-binary"]["rows"]}
    found = {what for what, row in rows.items() if row["verdict"] == FAILS}
    assert {WEIGHTS} <= found <= {WEIGHTS, "masked before any update", "alarms"}, said
    first = rows["first-update gap, first of them"]
    assert first["verdict"] == HOLDS and first["measured"] < 1e-5
