"""The code of docs/without_verl.md, as a reader copies it."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cppo_verl.trust_region.knobs import KnobError, TrustRegionKnobs
from cppo_verl.trust_region.loss import token_losses
from tests import ROOT, pages
from tests.helpers import random_batch

PAGE = "without_verl.md"
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('verl', 'ray', 'hydra', 'vllm'))); import runpy; "


@pytest.mark.stack  # a process of its own, seconds
def test_the_training_loop_learns_and_masks(tmp_path: Path):
    script = pages.write(PAGE, "python", tmp_path)["count.py"]
    command = [sys.executable, "-c", WITHOUT + f"runpy.run_path({str(script)!r})"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    form = r"step (\d+): reward ([\d.]+), masked (\d+)%"
    steps = re.findall(form, done.stdout)
    assert [int(step) for step, _, _ in steps] == [4, 8, 12, 16]
    assert float(steps[0][1]) < 0.6 < 0.9 < float(steps[-1][1])
    assert any(int(masked) > 0 for _, _, masked in steps)
    assert float(re.search(r"mean divergence ([\d.]+)", done.stdout)[1]) > 0
    assert len(re.findall("    " + form, pages.text(PAGE))) == 4  # what the page says was printed


@pytest.fixture
def loss_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Called with prime-rl's LossInputs, field by field (v0.8.1.dev67)."""
    loss = types.ModuleType("prime_rl.trainer.rl.loss")
    loss.LossInputs = loss.LossOutputs = SimpleNamespace
    for name in ("prime_rl", "prime_rl.trainer", "prime_rl.trainer.rl"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, loss.__name__, loss)
    names: dict = {}
    exec(pages.write(PAGE, "python", tmp_path)["trust_region_loss.py"].read_text(), names)

    def call(log_prob, old_log_prob, advantages, mask, weights=None, **knobs):
        policies = {"trainer_logprobs": log_prob, "inference_logprobs": old_log_prob, "ref_logprobs": None}
        inputs = SimpleNamespace(**policies, advantages=advantages, loss_mask=mask.bool(), loss_weights=weights)
        return names["trust_region"](inputs, **knobs)

    return call


def test_a_loss_by_import_path_is_the_rule_on_one_sequence(loss_of_the_page):
    batch = random_batch(seed=5, rows=20, width=30).to(torch.float32)
    knobs = {"delta": 0.1, "delta_b": 0.01}
    losses, sums = token_losses("cppo", *vars(batch).values(), TrustRegionKnobs(**knobs))
    total = 0.0
    for row in range(20):
        log_prob, *others = (tensor[row] for tensor in vars(batch).values())
        log_prob = log_prob.clone().requires_grad_()
        outputs = loss_of_the_page(log_prob, *others, rule="cppo", **knobs)
        outputs.loss.backward()
        assert outputs.loss.item() == pytest.approx(losses[row].sum().item(), abs=1e-6)
        assert all(value.dim() == 0 for value in outputs.metrics.values())
        halved = loss_of_the_page(log_prob, *others, torch.full_like(log_prob, 0.5), **knobs)
        assert halved.loss.item() == pytest.approx(outputs.loss.item() / 2)
        total += outputs.metrics["actor/trust_region/masked_share"].item() * batch.mask[row].sum().item()
    assert total == pytest.approx(sums.sums["masked_share"], rel=1e-5) and total > 0


def test_its_knobs_are_checked(loss_of_the_page):
    with pytest.raises(KnobError, match="w_min=0"):
        loss_of_the_page(*torch.zeros(4, 3), w_min=0)
