"""Prints the socket that verl's sender of weights binds, and the one that its vLLM worker connects to, in a new Ray."""

import os
import sys

import ray

os.environ.update(RANK="1", RAY_LOCAL_WORLD_SIZE="2")
ray.init(address="local", num_cpus=1, include_dashboard=False)

from verl.workers.config import HFModelConfig, RolloutConfig  # noqa: E402
from verl.workers.rollout.replica import RolloutMode  # noqa: E402
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension  # noqa: E402
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer  # noqa: E402
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter  # noqa: E402

rollout = RolloutConfig(name="vllm", mode="async", tensor_model_parallel_size=1, max_model_len=64)
model = HFModelConfig(path=sys.argv[1])
sender = ServerAdapter(rollout, model, None)
vLLMHttpServer(rollout, model, RolloutMode.HYBRID, [], 1, 0, 1, 1, "")
receiver = vLLMColocateWorkerExtension.__new__(vLLMColocateWorkerExtension)  # vLLM mixes it into its worker
receiver.local_rank, receiver.model_runner = 0, None
print("sockets", sender.zmq_handle, receiver._get_zmq_handle())
