"""Weights over gloo: a trainer of two ranks and two rollout engines, a thread each."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch

from cppo_verl.integration.cpu.weights import GlooCheckpointEngine

WEIGHTS = {
    "model.embed": torch.arange(12.0).view(3, 4),
    "model.bias": torch.tensor([1.5], dtype=torch.bfloat16),
    "model.count": torch.tensor(7),
    "model.empty": torch.zeros(0, 4),
}


async def received(engine: GlooCheckpointEngine) -> dict[str, torch.Tensor]:
    return {name: tensor async for name, tensor in engine.receive_weights()}


def exchange(engine: GlooCheckpointEngine, arguments: dict, turn: int):
    """What verl has each process do; the tensors that arrived, on a rollout worker."""
    engine.init_process_group(**arguments)
    if arguments["rank"] > 0:
        return asyncio.run(received(engine))
    return asyncio.run(engine.send_weights((name, value + turn) for name, value in WEIGHTS.items()))


def test_every_rollout_worker_gets_every_tensor_each_time():
    engines = [GlooCheckpointEngine(bucket_size=1 << 20, is_master=i == 0) for i in range(4)]
    for turn in range(2):  # every exchange meets anew
        metadata = [engine.prepare() for engine in engines]
        trainers, rollouts = GlooCheckpointEngine.build_topology(2, 2, metadata)
        arguments = [{key: values[i] for key, values in trainers.items()} for i in range(2)]
        arguments += [{key: values[i] for key, values in rollouts.items()} for i in range(2)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(exchange, engines, arguments, [turn] * 4))
        assert found[:2] == [None, None]
        for weights in found[2:]:
            assert list(weights) == list(WEIGHTS)
            for name, value in WEIGHTS.items():
                assert weights[name].dtype == value.dtype and torch.equal(weights[name], value + turn)
        place = engines[0].place
        assert place is not None and place.exists()
        for engine in engines:
            engine.finalize()
        assert not place.exists()
