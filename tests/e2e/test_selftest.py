"""A stage of ``cppo-verl selftest`` through the real stack, in which the rollout engine never gets new weights."""

import shutil

from cppo_verl.selftest.table import FAILS, HOLDS
from tests import ROOT
from tests.e2e.runs import Work
from tests.selftest.test_injected import failed_rows, selftest

WEIGHTS = "first-update gap, later: weights exchanged"


def test_weights_that_are_not_exchanged_are_found_and_nothing_else_is(work: Work, tmp_path):
    shutil.copytree(work.data, tmp_path / "out/tiny/data")
    shutil.copytree(work.model, tmp_path / "out/tiny/model")
    outside = {"PYTHONPATH": str(ROOT), "VERL_USE_EXTERNAL_MODULES": "tests.selftest.injected.weights_kept"}
    arguments = ["--stages", "doctor,tiny,one-binary", "--steps", "3"]
    status, results, said = selftest(tmp_path / "out", *arguments, **outside)
    assert status == 1, said
    assert results["doctor"]["verdict"] == results["tiny"]["verdict"] == HOLDS
    assert results["one-binary"]["verdict"] == FAILS
    consequences = {"masked before any update", "alarms"}
    assert {WEIGHTS} <= failed_rows(results["one-binary"]) <= {WEIGHTS, *consequences}, said
    first = next(row for row in results["one-binary"]["rows"] if row["what"] == "first-update gap, first of them")
    assert first["verdict"] == HOLDS and first["measured"] < 1e-5
