"""run_scripts/real_model.sh through the real stack, with a model of the reader's own: the quickstart's tiny one.

The package's own model takes minutes and 93 MB: `bash run_scripts/real_model.sh`.
"""

import os
import subprocess

import pytest

from tests import ROOT
from tests.e2e.runs import Work, ended_well, logged

pytest.importorskip("reasoning_gym", reason="pip install 'cppo_verl[real]'")


def test_a_model_of_ones_own_trains_on_two_tasks(work: Work):
    run = work.folder / "real"
    values = {"WORK": work.folder, "RUN": run, "MODEL": work.model, "WARM": "0", "STEPS": "2", "THREADS": "1", "N": "4"}
    values |= {"TASKS": "chain_sum(min_terms=2, max_terms=2, max_digits=1), gcd(max_value=60)", "PROMPT": "none"}
    values |= {"PROMPTS": "4", "MINIBATCH": "1", "PROMPT_TOKENS": "128", "RESPONSE_TOKENS": "8"}
    values |= {"TRAIN": "60", "VAL": "16"}
    environment = {**os.environ, **{key: str(value) for key, value in values.items()}}
    command = ["bash", str(ROOT / "run_scripts/real_model.sh")]
    ended_well(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500))
    steps = logged(run)
    assert list(steps) == [0, 1, 2]
    sources = {key.split("/")[1] for key in steps[2] if key.startswith("val-core/")}
    assert sources == {"rg_chain_sum", "rg_gcd"}
    assert any(key.startswith("val-aux/rg_gcd/partial/") for key in steps[2])
    page = (run / "validations.md").read_text()
    assert "always the commonest training answer" in page and "| step 2 |" in page
    assert "over 16 questions, paired" in page
