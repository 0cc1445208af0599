"""What a run is told once: validation prompts that are trained on, and engines that disagree at equal weights."""

import types

import datasets
import pandas
import pytest

from cppo_verl.integration import alarms
from cppo_verl.launch import progress


def dataset(*questions, frame=datasets.Dataset.from_dict) -> types.SimpleNamespace:
    rows = [[{"role": "user", "content": question}] for question in questions]
    return types.SimpleNamespace(dataframe=frame({"prompt": rows}))


@pytest.mark.parametrize("frame", [datasets.Dataset.from_dict, pandas.DataFrame])
def test_shared_prompts_are_counted_and_shown(frame):
    sentence = alarms.shared_prompts(dataset("1+1", "2+2", "1+1", frame=frame), dataset("2+2", "3+3", "2+2"), "prompt")
    assert sentence is not None
    assert sentence.startswith("1 of 2 validation prompts are in data.train_files too")
    assert "2+2" in sentence and "data_prep.contamination" in sentence


@pytest.mark.parametrize("other", [object(), dataset("3+3")])
def test_disjoint_or_unknown_datasets_raise_no_alarm(other):
    assert alarms.shared_prompts(other, dataset("2+2"), "prompt") is None


def test_prompts_need_not_be_text():
    odd = dataset(b"\x00png", pandas.Timestamp("2026-01-01"), frame=pandas.DataFrame)
    assert (alarms.shared_prompts(odd, odd, "prompt") or "").startswith("2 of 2")


@pytest.mark.parametrize(("stale", "word"), [(False, "temperature"), (True, "anchor=proximal")])
def test_a_gap_beyond_the_budget(stale: bool, word: str):
    said = alarms.spent({alarms.GAP: 0.0201}, 0.02, stale)
    assert said is not None and "0.0201 is above 0.02" in said and word in said
    assert alarms.spent({alarms.GAP: 0.02}, 0.02, stale) is alarms.spent({}, 0.02, stale) is None


def test_an_alarm_is_what_progress_looks_for(caplog: pytest.LogCaptureFixture):
    assert alarms.raise_alarm("engines differ") and not alarms.raise_alarm(None)
    (record,) = caplog.records
    assert record.levelname == "ERROR" and record.getMessage() == f"{progress.ALARM}: engines differ"
