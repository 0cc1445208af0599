"""What a run is told once: validation prompts that are trained on, and engines that disagree at equal weights."""

import subprocess
import sys
import types
from pathlib import Path

import datasets
import pandas
import pytest

from cppo_verl.integration import alarms, losses
from cppo_verl.launch.progress import Progress
from cppo_verl.trust_region.knobs import KnobError


def rows(*questions) -> list[list[dict]]:
    return [[{"role": "user", "content": question}] for question in questions]


def dataset(*questions: str, frame=datasets.Dataset.from_dict) -> types.SimpleNamespace:
    return types.SimpleNamespace(dataframe=frame({"prompt": rows(*questions)}))


@pytest.mark.parametrize("frame", [datasets.Dataset.from_dict, pandas.DataFrame])
def test_shared_prompts_are_counted_and_shown(frame):
    sentence = alarms.shared_prompts(dataset("1+1", "2+2", "1+1", frame=frame), dataset("2+2", "3+3", "2+2"), "prompt")
    assert sentence is not None
    assert sentence.startswith("1 of 2 validation prompts are in data.train_files too")
    assert "2+2" in sentence and "data_prep.contamination" in sentence


def test_bytes_and_dates_are_compared_too():
    found = dataset(b"\x00png", pandas.Timestamp("2026-01-01"), frame=pandas.DataFrame)
    assert (alarms.shared_prompts(found, found, "prompt") or "").startswith("2 of 2")


class Raises:
    @property
    def dataframe(self):
        raise OSError("no such file")


@pytest.mark.parametrize("other", [object(), Raises(), types.SimpleNamespace(dataframe=3), dataset()])
def test_disjoint_or_unknown_datasets_raise_no_alarm(other):
    assert alarms.shared_prompts(other, dataset("2+2"), "prompt") is None
    assert alarms.shared_prompts(dataset("1+1"), other, "prompt") is None
    assert alarms.shared_prompts(dataset("1+1"), dataset("1+1"), "question") is None


@pytest.mark.parametrize(("gap", "said"), [(0.0201, True), (0.02, False), (0.0, False)])
@pytest.mark.parametrize(("stale", "word"), [(False, "temperature"), (True, "anchor=proximal")])
def test_a_gap_beyond_the_budget(gap: float, said: bool, stale: bool, word: str):
    sentence = alarms.spent({alarms.GAP: gap}, 0.02, stale)
    assert (sentence is not None) == said
    if sentence:
        assert "0.0201 is above 0.02" in sentence and word in sentence
    assert alarms.spent({}, 0.02, stale) is None


def test_an_alarm_reaches_the_progress_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    console = tmp_path / "console.log"
    progress = Progress(tmp_path / "metrics.jsonl", console, tmp_path / "none", tmp_path / "config.yaml")
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
