"""What the CPU platform changes in vLLM, on vLLM's own modules."""

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


@pytest.mark.stack
def test_weights_stay_live_and_experts_are_refused():
    values = {**os.environ, "VERL_PLATFORM": "cpu"}
    done = subprocess.run([sys.executable, "-c", SOURCE], env=values, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "linear weights kept: True" in done.stdout
    assert "experts refused: mixture-of-experts models cannot be trained with VERL_PLATFORM=cpu" in done.stdout
