"""The files and commands of docs/extending.md, as a reader copies them; the real stack runs them in tests/e2e."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cppo_verl.trust_region import extensions
from cppo_verl.trust_region.knobs import KnobError
from cppo_verl.trust_region.loss import policy_loss
from cppo_verl.trust_region.rules import knobs_of_rule
from tests import ROOT, pages
from tests.helpers import batch_of

PAGE = "extending.md"


@pytest.fixture
def folder(tmp_path: Path, registries) -> Path:
    """The reader's folder with the page's files in it."""
    for language in ("python", "yaml"):
        pages.write(PAGE, language, tmp_path)
    return tmp_path


def test_the_rule_by_hand(folder: Path):
    """mu = 1/2 throughout; tokens 1, 3 and 4 move by 0.2 > 0.1. With one token of grace, 3 and what follows is cut."""
    extensions.load(str(folder / "cutoff.py"))
    pi = torch.tensor([[0.7, 0.5, 0.7, 0.7, 0.55, 0.4]])
    batch = batch_of(pi.log().tolist(), [[0.5] * 6], [[1.0] * 6], [[1] * 6])
    batch.old_log_prob.log_()
    log_prob = batch.log_prob.requires_grad_()
    knobs = knobs_of_rule("cutoff")(delta=0.1, grace=1)
    loss, metrics = policy_loss("cutoff", log_prob, batch.old_log_prob, batch.advantages, batch.mask, knobs)
    loss.backward()
    assert (log_prob.grad != 0).tolist() == [[True, True, False, False, False, True]]  # the last goes back toward mu
    assert metrics["actor/trust_region/masked_share"] == pytest.approx(3 / 6)
    assert metrics["actor/trust_region/masked_share_token_threshold"] == pytest.approx(2 / 6)
    with pytest.raises(KnobError, match="grace=-1 is outside"):
        knobs_of_rule("cutoff")(grace=-1)


def test_the_bench_takes_it(folder: Path):
    from benchmarks.pocket import grid, losses

    preset = str(folder / "trust_region/cutoff.yaml")
    tried = grid.trial(grid.load(quick=True), [preset], 1)
    assert list(tried["rules"]) == ["cppo", "dppo", "cutoff"]
    assert {spec.rule for spec in grid.specs(tried)} == {"cppo", "dppo", "cutoff"}
    laws = torch.tensor([[[0.5, 0.5]] * 4]).log(), torch.tensor([[[0.8, 0.2]] * 4]).log()
    loss_of = losses.policy_loss(tried["rules"]["cutoff"], 4)
    loss, sums = loss_of(laws[1].requires_grad_(), laws[0], torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))
    assert loss.isfinite() and losses.means([sums])["masked_share"] == 0.5  # grace 2 of 4
    for wrong in ("cppo", "nowhere", str(folder / "trust_region/nowhere.yaml")):
        with pytest.raises(ValueError, match="--try"):
            grid.trial(grid.load(quick=True), [wrong], 1)


INSTALLED = """
import json
from cppo_verl import presets
from cppo_verl.trust_region import extensions
extensions.load_installed()
config = presets.compose("cutoff", [])
print(json.dumps([extensions.from_outside(), config.actor_rollout_ref.actor.policy_loss.grace]))
"""


@pytest.mark.stack
def test_as_a_package(tmp_path: Path):
    """Built and installed by pip from the page's pyproject.toml."""
    source, target = tmp_path / "my_rules", tmp_path / "installed"
    pages.write(PAGE, "toml", source)
    pages.write(PAGE, "python", source / "my_rules")
    pages.write(PAGE, "yaml", source / "my_rules/conf")
    (source / "my_rules/__init__.py").touch()
    preset = source / "my_rules/conf/trust_region/cutoff.yaml"
    preset.write_text("".join(line for line in preset.open() if "rule_module" not in line))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{target}"}
    command = [sys.executable, "-c", INSTALLED]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [{"cutoff": "my_rules.cutoff"}, 2]
