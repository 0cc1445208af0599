"""The stage ``losses``: holds as the package is, and finds a wrong gather and a wrong gradient."""

from pathlib import Path

import pytest
import torch
import verl  # noqa: F401  (loads the plug-in)

from cppo_verl.integration.topk import logits
from cppo_verl.selftest import losses
from cppo_verl.selftest.setting import Setting
from cppo_verl.selftest.table import FAILS, HOLDS
from cppo_verl.trust_region import surrogate

SETTING = Setting(Path(), "cpu", 2)
DEVICE = torch.device("cpu")


def micro(dtype: torch.dtype = torch.float32, temperature: float = 0.7) -> losses.Micro:
    return losses.Micro.make(500, 20, dtype, temperature, DEVICE)


def test_the_package_holds():
    rows = list(losses.measure(SETTING))
    assert {row.verdict for row in rows} == {HOLDS}, [row for row in rows if row.verdict != HOLDS]
    said = " ".join(row.what for row in rows)
    assert all(text in said for text in ("losses, float32", "bfloat16", "top-K TV", "top-K KL", "LM head"))


@pytest.mark.parametrize("mutation", ["position", "order", "temperature", "sampled"])
def test_a_wrong_gather_is_found(mutation, monkeypatch):
    index, data = logits.token_index, micro()
    broken = {
        "position": lambda d, k: index(d, k).roll(1, 0),
        "order": lambda d, k: torch.cat([index(d, k)[:, :k].roll(1, -1), index(d, k)[:, k:]], -1),
        "sampled": lambda d, k: torch.cat([index(d, k)[:, :k], index(d, k)[:, :1]], -1),
    }
    if mutation == "temperature":
        object.__setattr__(data, "logits", [x * 1.01 for x in data.logits])
        honest = losses.Micro.expected
        right = micro()
        monkeypatch.setattr(losses.Micro, "expected", lambda self, row, kind: honest(right, row, kind))
    else:
        monkeypatch.setattr(logits, "token_index", broken[mutation])
    assert FAILS in {row.verdict for row in losses.gather_rows(data)}


def test_an_honest_gather_of_the_same_batch_is_not_found():
    assert {row.verdict for row in losses.gather_rows(micro())} == {HOLDS}


def test_a_gradient_that_is_off_by_a_thousandth_is_found(monkeypatch):
    honest = surrogate.loss_matrix
    for module in ("cppo_verl.integration.losses", "cppo_verl.trust_region.loss"):
        try:
            monkeypatch.setattr(f"{module}.loss_matrix", lambda log_prob, c: honest(log_prob, c) * _scale(log_prob))
        except (ImportError, AttributeError):
            continue
    rows = [row for row in losses.measure(SETTING) if "float32: largest relative error" in row.what]
    assert [row.verdict for row in rows] == [FAILS]


def _scale(log_prob: torch.Tensor) -> float:
    return 1.0 if log_prob.dtype == torch.float64 else 1.001
