"""What the CPU platform adds to verl, and changes in vLLM, on their own modules; and its way for weights."""

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

VLLM = """
from vllm.plugins import load_general_plugins
load_general_plugins()
import torch
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.fused_moe.experts import cpu_moe

layer = torch.nn.Linear(4, 4)
utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
print("linear weights kept:", layer.weight.numel() == 16)
try:
    cpu_moe.CPUUnquantizedExperts.process_weights_after_loading(None, None)
except NotImplementedError as error:
    print("experts refused:", error)
"""


@pytest.mark.stack
def test_weights_stay_live_and_experts_are_refused():
    values = {**os.environ, "VERL_PLATFORM": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", VLLM]
    done = subprocess.run(command, env=values, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout
    assert "linear weights kept: True" in said
    assert "experts refused: mixture-of-experts models cannot be trained with VERL_PLATFORM=cpu" in said


def test_every_rollout_worker_gets_every_tensor_each_time():
    """Over gloo: a trainer of two ranks and two rollout engines, a thread each."""
    from cppo_verl.integration.cpu.weights import GlooCheckpointEngine

    weights = {
        "embed": torch.arange(12.0).view(3, 4),
        "bias": torch.tensor([1.5], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }

    async def received(engine) -> dict[str, torch.Tensor]:
        return {name: tensor async for name, tensor in engine.receive_weights()}

    def exchange(engine, arguments: dict, turn: int):
        """What verl has each process do; the tensors that arrived, on a rollout worker."""
        engine.init_process_group(**arguments)
        if arguments["rank"] > 0:
            return asyncio.run(received(engine))
        return asyncio.run(engine.send_weights((name, value + turn) for name, value in weights.items()))

    engines = [GlooCheckpointEngine(bucket_size=1 << 20, is_master=i == 0) for i in range(4)]
    for turn in range(2):  # every exchange meets anew
        topology = GlooCheckpointEngine.build_topology(2, 2, [engine.prepare() for engine in engines])
        arguments = [{key: values[i] for key, values in kind.items()} for kind in topology for i in range(2)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(exchange, engines, arguments, [turn] * 4))
        assert found[:2] == [None, None]
        for arrived in found[2:]:
            assert list(arrived) == list(weights)
            for name, value in weights.items():
                assert arrived[name].dtype == value.dtype and torch.equal(arrived[name], value + turn)
        place = engines[0].place
        assert place is not None and place.exists()
        for engine in engines:
            engine.finalize()
        assert not place.exists()
