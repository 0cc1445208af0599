"""verl's FSDP engine on two gloo ranks, by every way that a GPU run takes and a CPU can: the same D_t and gradients.

The plain model in float32, each response on its own, is what they are compared with. ``engine_ranks`` has the ways.
"""

import json
import subprocess
import sys

import pytest
import torch
from packaging.version import Version

from cppo_verl.trust_region.topk import tv_coding_bound
from tests import ROOT, stand_in
from tests.integration.engine_ranks import WAYS
from tests.integration.micro import K

pytestmark = pytest.mark.stack

LORA = "LoRA, fused"
WRONG = "SP, sdpa"
HALF = [name for name, way in WAYS.items() if way.dtype == "bf16"]
FLOAT32 = [name for name in WAYS if name not in (*HALF, LORA, WRONG)]


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**stand_in.environment(), "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
    environment["VERL_ENGINE_DEVICE"] = "cuda"  # where verl registers FSDP1 as well; the classes are the same
    ranks = []
    for rank in range(2):
        command = [sys.executable, "-W", "ignore", "-m", "tests.integration.engine_ranks", str(folder), str(rank), "2"]
        log = (folder / f"{rank}.log").open("w")
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        for rank, process in enumerate(ranks):
            assert process.wait(timeout=300) == 0, (folder / f"{rank}.log").read_text()[-4000:]
    finally:
        for process in ranks:
            process.kill()
    return json.loads((folder / "errors.json").read_text())


def of(errors: dict[str, dict[str, float]], way: str) -> dict[str, float]:
    """The errors of a way; skipped where the ranks could not share sequences."""
    if way not in errors and "SP" in way and Version(torch.__version__) < Version("2.13"):
        pytest.skip(f"gloo of torch {torch.__version__} has no all-to-all, which sequence parallelism needs")
    return errors[way]


@pytest.mark.parametrize("way", [*FLOAT32, LORA])
def test_float32_gives_the_plain_models_numbers(errors, way):
    found = of(errors, way)
    assert found["log_prob"] < 1e-5
    assert found["divergence"] < 3e-6
    assert found["own"] < tv_coding_bound(K) + 3e-6
    assert found["proximal"] < 1e-5
    if way != LORA:
        assert found["gradient"] < 1e-5
        assert found["norm"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("way", HALF)
def test_half_precision_measures_its_own_logits_exactly(errors, way):
    """The policy is another one, by the rounding; the estimator adds no error of its own to that."""
    found = of(errors, way)
    assert 1e-3 < found["log_prob"] < 0.3
    assert found["own"] < tv_coding_bound(K) + 3e-6


def test_sequence_parallelism_without_flash_attention_is_wrong(errors):
    """Each rank's part of a sequence attends to nothing of the other's: why a start check refuses it."""
    found = of(errors, WRONG)
    assert found["log_prob"] > 1
    assert found["divergence"] > 0.1
