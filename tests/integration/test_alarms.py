"""What a run is told once: validation prompts that are trained on, and engines that disagree at equal weights."""

import subprocess
import sys
import types
from pathlib import Path

import datasets
import pytest

from cppo_verl.cli import run as cli_run
from cppo_verl.integration import alarms, losses
from cppo_verl.trust_region.knobs import KnobError


def dataset(*questions: str) -> types.SimpleNamespace:
    rows = [[{"role": "user", "content": question}] for question in questions]
    return types.SimpleNamespace(dataframe=datasets.Dataset.from_dict({"prompt": rows}))


def test_shared_prompts_are_counted_and_shown():
    sentence = alarms.shared_prompts(dataset("1+1", "2+2", "1+1"), dataset("2+2", "3+3", "2+2"), "prompt")
    assert sentence is not None
    assert sentence.startswith("1 of 2 validation prompts are in data.train_files too")
    assert "2+2" in sentence and "data_prep.contamination" in sentence


def test_disjoint_or_unknown_datasets_raise_no_alarm():
    assert alarms.shared_prompts(dataset("1+1"), dataset("2+2"), "prompt") is None
    assert alarms.shared_prompts(object(), dataset("2+2"), "prompt") is None
    assert alarms.shared_prompts(dataset("1+1"), dataset("1+1"), "question") is None


@pytest.mark.parametrize(("gap", "said"), [(0.0201, True), (0.02, False), (0.0, False)])
def test_a_gap_beyond_the_budget(gap: float, said: bool):
    sentence = alarms.engine_gap({alarms.GAP: gap}, 0.02)
    assert (sentence is not None) == said
    if sentence:
        assert "0.0201 is above 0.02" in sentence and "temperature" in sentence
    assert alarms.engine_gap({}, 0.02) is None


def test_an_alarm_reaches_the_progress_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    console = tmp_path / "console.log"
    progress = cli_run._Progress(tmp_path / "metrics.jsonl", console, tmp_path / "none", tmp_path / "config.yaml")
    source = f"from cppo_verl.integration import alarms; alarms.raise_alarm({'engines differ'!r})"
    with console.open("wb") as log:
        subprocess.run([sys.executable, "-c", source], stderr=log, check=True)
    progress.tick()
    progress.tick()
    assert capsys.readouterr().out == "TRUST REGION ALARM: engines differ\n"


def test_a_process_without_the_plug_in_is_named(monkeypatch: pytest.MonkeyPatch):
    from verl.trainer.ppo import core_algos

    losses.require_registered("cppo")
    losses.require_registered("vanilla")
    monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, "cppo", core_algos.POLICY_LOSS_REGISTRY["vanilla"])
    with pytest.raises(KnobError, match="taken by verl.trainer.ppo.core_algos"):
        losses.require_registered("cppo")
    monkeypatch.delitem(core_algos.POLICY_LOSS_REGISTRY, "cppo")
    with pytest.raises(KnobError, match="was not loaded.*VERL_USE_EXTERNAL_PLUGINS=auto"):
        losses.require_registered("cppo")


def test_a_loss_of_our_name_is_reported_and_replaced(monkeypatch: pytest.MonkeyPatch):
    from verl.trainer.ppo import core_algos

    for name, loss in list(core_algos.POLICY_LOSS_REGISTRY.items()):  # whatever is registered below is undone
        monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, name, loss)
    monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, "cppo", core_algos.POLICY_LOSS_REGISTRY["vanilla"])
    said: list[str] = []
    monkeypatch.setattr(losses.logger, "warning", lambda text, *values: said.append(text % values))
    losses.register(core_algos)
    assert any("policy loss 'cppo' is registered by verl.trainer.ppo.core_algos." in text for text in said)
    assert core_algos.POLICY_LOSS_REGISTRY["cppo"].__qualname__ == "policy_loss_cppo"
    losses.require_registered("cppo")
