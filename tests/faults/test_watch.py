"""The watchdog knows every process without which a run hangs, by the name that Ray gives it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from cppo_verl.launch import supervise

ACTORS = {
    "verl.trainer.main_ppo": ["TaskRunnerV1"],
    "verl.trainer.ppo.v1.agent_loop_tq": ["AgentLoopWorkerTQ"],
    "verl.experimental.reward_loop.reward_loop": ["RewardLoopWorker"],
    "verl.workers.rollout.vllm_rollout.vllm_async_server": ["vLLMHttpServer"],
    "transfer_queue.controller": ["TransferQueueController"],
    "transfer_queue.storage.simple_storage": ["SimpleStorageUnit"],
    "cppo_verl.integration.topk.server": ["TopKHttpServer"],
    "cppo_verl.integration.topk.agent_loop": ["TopKAgentLoopWorker"],
    "cppo_verl.integration.seeded": ["SeededAgentLoopWorker"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in ACTORS.items() for name in names])
def test_an_actor_is_watched(module, name):
    top, *inside = module.split(".")
    source = Path(find_spec(top).submodule_search_locations[0], *inside).with_suffix(".py")
    assert f"class {name}" in source.read_text()  # a renamed class would be watched no more
    assert f"ray::{name}".startswith(supervise.ESSENTIAL)
