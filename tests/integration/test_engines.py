"""The loss as verl's Megatron engine calls it.

``python -m tests.integration.test_engines FOLDER`` prints, for Megatron and for FSDP, the loss, the metrics, and the
largest difference of its gradient with respect to the model's raw logits from FSDP's. The model itself is a stand-in
that hands out logits in the engine's layout; what lies before and after it is verl's code: inputs, temperature,
log-probs, batch statistics. Megatron is the package.
"""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import verl  # noqa: F401  (loads the plug-in)
from verl.utils import tensordict_utils

from cppo_verl.integration import losses
from cppo_verl.integration.topk import FIELD
from cppo_verl.trust_region.metrics import PREFIX
from tests import ROOT
from tests.integration.micro import Micro, actor_config

PACKAGES = ("megatron-core==0.16.1", "mbridge==0.15.1")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "0", "--timeout", "15"]
NO_NETWORK = ("No matching distribution", "ConnectionPool", "Connection")


def run(*command: str) -> subprocess.CompletedProcess:
    values = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=300)


@pytest.mark.stack
def test_megatron_gets_fsdps_loss(tmp_path):
    got = run(*PIP, "install", "--no-deps", "--target", str(tmp_path), *PACKAGES)
    if got.returncode and any(words in got.stderr for words in NO_NETWORK):
        pytest.skip(f"pip has no way to get {' '.join(PACKAGES)}")
    assert got.returncode == 0, got.stderr
    done = run(sys.executable, "-W", "ignore", "-m", "tests.integration.test_engines", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    fsdp, megatron = found["fsdp"], found["megatron"]
    assert megatron["loss"] == pytest.approx(fsdp["loss"], rel=1e-6, abs=0)
    assert megatron["gradient"] <= 1e-6 and 0 < megatron["metrics"][PREFIX + "masked_share"] < 1
    # log-probs from its own softmax differ by a few 1e-7
    assert megatron["metrics"] == pytest.approx(fsdp["metrics"], rel=1e-5, abs=1e-6)


# ---- the process that runs verl's forward steps


class Model:
    """Hands out the raw logits of the packed sequences, whatever it is asked with."""

    pre_process = post_process = True
    config = SimpleNamespace(fp8=None, model_type="qwen3")

    def __init__(self, raw: torch.Tensor, wrapped: bool = False):
        self.raw, self.wrapped = raw, wrapped

    def __call__(self, *_, **__):
        logits = self.raw.unsqueeze(0) * 1  # engines divide theirs in place
        return SimpleNamespace(logits=logits) if self.wrapped else logits


def bare(engine_class, **attributes):
    """An engine with only what its forward step reads."""
    kind = type("Bare", (engine_class,), {"__init__": lambda self: None, "get_data_parallel_group": lambda self: None})
    engine = kind()
    for name, value in attributes.items():
        setattr(engine, name, value)
    return engine


def fsdp(raw: torch.Tensor, data, loss):
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    config = SimpleNamespace(use_fused_kernels=False, mixed_precision={"param_dtype": "fp32"}, use_torch_compile=False)
    values = {"pad_to_length": None, "use_ulysses_sp": False, "ulysses_sequence_parallel_size": 1}
    engine = bare(FSDPEngineWithLMHead, engine_config=config, module=Model(raw, wrapped=True), **values)
    engine._get_packed_pad_size = lambda _: 0
    return engine.forward_step(data, loss_function=loss, forward_only=False)


def megatron(raw: torch.Tensor, data, loss):
    from megatron.core import parallel_state
    from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

    parallel_state.initialize_model_parallel()
    switches = {"pad_to_length": False, "use_remove_padding": True, "dynamic_context_parallel": False}
    engine = bare(
        MegatronEngineWithLMHead,
        engine_config=SimpleNamespace(use_fused_kernels=False, **switches),
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(architectures=["Qwen3ForCausalLM"]),
            mtp=SimpleNamespace(enable=False, enable_train=False),
            tokenizer=SimpleNamespace(pad_token_id=0),
        ),
        tf_config=SimpleNamespace(calculate_per_token_loss=False),
        enable_routing_replay=False,
    )
    step = partial(engine.postprocess_micro_batch_func, forward_only=False, loss_function=loss)
    output, loss_function = engine.forward_step(iter([data]), Model(raw), loss, step)
    return loss_function(output)


def outcome(engine, micro: Micro):
    """Loss, gradient with respect to the raw logits, and the step's metrics."""
    data = micro.data(use_remove_padding=True, distillation_use_topk=False)
    del data[FIELD]
    tensordict_utils.assign_non_tensor(data, num_micro_batch=1)
    raw = torch.cat(micro.pi_logits).clone().requires_grad_()
    config = actor_config(estimator="binary", loss_mode="dppo", delta=0.02)
    loss, output = engine(raw, data, partial(losses.trust_region_loss, config))
    loss.backward()
    metrics = losses.fold({name: [value.aggregate()] for name, value in output["metrics"].items()})
    return loss.item(), raw.grad, {name: values[0] for name, values in metrics.items()}


def main(folder: str) -> None:
    sys.path.append(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    micro = Micro(lengths=((3, 5), (2, 9), (4, 7)), drift=1.0)
    found = {engine.__name__: outcome(engine, micro) for engine in (fsdp, megatron)}
    expected = found["fsdp"][1]
    told = {}
    for name, (loss, gradient, metrics) in found.items():
        difference = ((gradient - expected).abs().max() / expected.abs().max()).item()
        told[name] = {"loss": loss, "gradient": difference, "metrics": metrics}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
