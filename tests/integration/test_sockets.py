"""Two runs on one machine, each with a Ray of its own, hand their weights to their own rollouts."""

import os
import subprocess
import sys

import pytest
from transformers import Qwen3Config

from data_prep.tiny_model import build_tokenizer
from tests import ROOT

# Prints the socket that verl's sender of weights binds, and the one that its vLLM worker connects to, in a new Ray.
SOURCE = """
import ray, sys
ray.init(address="local", num_cpus=1, include_dashboard=False)
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.replica import RolloutMode
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

rollout = RolloutConfig(name="vllm", mode="async", tensor_model_parallel_size=1, max_model_len=64)
model = HFModelConfig(path=sys.argv[1])
sender = ServerAdapter(rollout, model, None)
vLLMHttpServer(rollout, model, RolloutMode.HYBRID, [], 1, 0, 1, 1, "")
receiver = vLLMColocateWorkerExtension.__new__(vLLMColocateWorkerExtension)  # vLLM mixes it into its worker
receiver.local_rank, receiver.model_runner = 0, None
print("sockets", sender.zmq_handle, receiver._get_zmq_handle())
"""


@pytest.mark.stack
def test_no_run_takes_the_socket_of_another_one(tmp_path):
    Qwen3Config(architectures=["Qwen3ForCausalLM"]).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    values = {"VERL_PLATFORM": "cpu", "RAY_ADDRESS": "local", "RANK": "1", "RAY_LOCAL_WORLD_SIZE": "2"}
    options = {"cwd": ROOT, "env": {**os.environ, **values}, "text": True, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", SOURCE, str(tmp_path)]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, **options) for _ in range(2)]
    pairs = []
    for run in runs:
        printed, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
        pairs.append(next(line.split()[1:] for line in printed.splitlines() if line.startswith("sockets ")))
    (sender, receiver), (other_sender, other_receiver) = pairs
    assert sender == receiver and other_sender == other_receiver
    assert sender != other_sender
