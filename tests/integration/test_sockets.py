"""Two runs on one machine, each with a Ray of its own, hand their weights to their own rollouts."""

import os
import subprocess
import sys

import pytest
from transformers import Qwen3Config

from data_prep.tiny_model import build_tokenizer
from tests import ROOT


@pytest.mark.stack
def test_no_run_takes_the_socket_of_another_one(tmp_path):
    Qwen3Config(architectures=["Qwen3ForCausalLM"]).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-m", "tests.integration.sockets_of_a_run", tmp_path]
    values = {**os.environ, "VERL_PLATFORM": "cpu", "RAY_ADDRESS": "local"}
    runs = [
        subprocess.Popen(command, cwd=ROOT, env=values, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    pairs = []
    for run in runs:
        printed, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
        pairs.append(next(line.split()[1:] for line in printed.splitlines() if line.startswith("sockets ")))
    (sender, receiver), (other_sender, other_receiver) = pairs
    assert sender == receiver and other_sender == other_receiver
    assert sender != other_sender
