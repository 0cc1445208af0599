"""What the CPU platform adds to verl, and changes in vLLM, on their own modules."""

import os
import subprocess
import sys

import pytest

SOURCE = """
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
CRITIC = """
import verl, sys
from verl.utils import model
from verl.workers.engine import EngineRegistry
print(EngineRegistry.get_engine_cls("value_model", "fsdp2").__name__)
config = model.AutoConfig.from_pretrained(sys.argv[1], num_labels=1)
loaded = model.load_valuehead_model(sys.argv[1], None, config, False)
print(loaded.config._attn_implementation, loaded.score.out_features)
"""


def python(source: str, *arguments: str) -> str:
    values = {**os.environ, "VERL_PLATFORM": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", source, *arguments]
    done = subprocess.run(command, env=values, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_critic_has_an_engine_and_its_own_attention(tmp_path):
    """verl loads it with flash attention, whatever the config says."""
    from transformers import AutoModelForCausalLM

    from tests.integration.engine_ranks import CONFIGS

    AutoModelForCausalLM.from_config(CONFIGS["dense"]).save_pretrained(tmp_path)
    assert python(CRITIC, str(tmp_path)).splitlines()[-2:] == ["FSDPEngineWithValueHead", "sdpa 1"]


@pytest.mark.stack
def test_weights_stay_live_and_experts_are_refused():
    said = python(SOURCE)
    assert "linear weights kept: True" in said
    assert "experts refused: mixture-of-experts models cannot be trained with VERL_PLATFORM=cpu" in said
