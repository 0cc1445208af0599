"""What a run is told once: validation prompts that are trained on, and engines that disagree at equal weights."""

import subprocess
import sys
import types
from pathlib import Path

import datasets
import pandas
import pytest

from cppo_verl.integration import alarms
from cppo_verl.launch.progress import Progress


def dataset(*questions, frame=datasets.Dataset.from_dict) -> types.SimpleNamespace:
    rows = [[{"role": "user", "content": question}] for question in questions]
    return types.SimpleNamespace(dataframe=frame({"prompt": rows}))


@pytest.mark.parametrize("frame", [datasets.Dataset.from_dict, pandas.DataFrame])
def test_shared_prompts_are_counted_and_shown(frame):
    sentence = alarms.shared_prompts(dataset("1+1", "2+2", "1+1", frame=frame), dataset("2+2", "3+3", "2+2"), "prompt")
    assert sentence is not None
    assert sentence.startswith("1 of 2 validation prompts are in data.train_files too")
    assert "2+2" in sentence and "data_prep.contamination" in sentence
    other = dataset(b"\x00png", pandas.Timestamp("2026-01-01"), frame=pandas.DataFrame)
    assert (alarms.shared_prompts(other, other, "prompt") or "").startswith("2 of 2")


@pytest.mark.parametrize("other", [object(), types.SimpleNamespace(dataframe=3), dataset(), dataset("3+3")])
def test_disjoint_or_unknown_datasets_raise_no_alarm(other):
    assert alarms.shared_prompts(other, dataset("2+2"), "prompt") is None
    assert alarms.shared_prompts(dataset("1+1"), other, "prompt") is None
    assert alarms.shared_prompts(dataset("1+1"), dataset("1+1"), "question") is None


@pytest.mark.parametrize(("stale", "word"), [(False, "temperature"), (True, "anchor=proximal")])
def test_a_gap_beyond_the_budget(stale: bool, word: str):
    said = alarms.spent({alarms.GAP: 0.0201}, 0.02, stale)
    assert said is not None and "0.0201 is above 0.02" in said and word in said
    assert alarms.spent({alarms.GAP: 0.02}, 0.02, stale) is alarms.spent({}, 0.02, stale) is None


def test_an_alarm_reaches_the_progress_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    console = tmp_path / "console.log"
    progress = Progress(tmp_path / "metrics.jsonl", console, tmp_path / "none", tmp_path / "config.yaml")
    source = f"from cppo_verl.integration import alarms; alarms.raise_alarm({'engines differ'!r})"
    with console.open("wb") as log:
        subprocess.run([sys.executable, "-c", source], stderr=log, check=True)
    progress.tick()
    progress.tick()
    assert capsys.readouterr().out == "TRUST REGION ALARM: engines differ\n"
