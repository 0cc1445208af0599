"""The command finds a fault that the test brings in from outside; the package has no switch for it."""

import pytest

from tests import ROOT
from tests.selftest import selftest


@pytest.mark.stack
def test_a_top_k_gathered_a_token_too_late_is_found(tmp_path):
    outside = {"PYTHONPATH": str(ROOT), "VERL_USE_EXTERNAL_MODULES": "tests.selftest.injected.wrong_gather"}
    status, results, said = selftest(tmp_path, "--stages", "losses", **outside)
    assert status == 1, said
    found = {row["what"].split(":")[0] for row in results["losses"]["rows"] if row["verdict"] == "fails"}
    assert found == {f"top-K {kind} from {dtype} logits" for kind in ("TV", "KL") for dtype in ("float32", "bfloat16")}
    assert "FAILS top-K TV from float32 logits" in said
