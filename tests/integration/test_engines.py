"""What the start says of each engine and rollout, and the loss as verl's Megatron, VeOmni and torchtitan call it.

``python -m tests.integration.test_engines FOLDER ENGINE...`` prints, for each and for FSDP, the loss, the metrics, and
the largest difference of its gradient with respect to the model's raw logits from FSDP's. The model itself is a
stand-in that hands out logits in the engine's layout; what lies before and after it is verl's code: inputs,
temperature, log-probs, batch statistics. Megatron and VeOmni are the packages; no released torchtitan has what verl
0.9.1 imports, so its names are stand-ins.
"""

import importlib.abc
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import verl  # noqa: F401  (loads the plug-in)
from verl.utils import tensordict_utils

from cppo_verl import presets
from cppo_verl.integration import engines, losses
from cppo_verl.integration.topk import FIELD
from cppo_verl.trust_region.metrics import PREFIX
from tests import ROOT
from tests.integration.micro import Micro, actor_config

PACKAGES = ("megatron-core==0.16.1", "mbridge==0.15.1", "veomni==0.1.12")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "0", "--timeout", "15"]
NO_NETWORK = ("No matching distribution", "ConnectionPool", "Connection")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """By engine; torchtitan's alone where pip has no way to get the others' wheels."""
    folder, names = str(tmp_path_factory.mktemp("engines")), ["torchtitan"]
    got = run(*PIP, "install", "--no-deps", "--target", folder, *PACKAGES)
    if not (got.returncode and any(words in got.stderr for words in NO_NETWORK)):
        assert got.returncode == 0, got.stderr
        names = ["megatron", "veomni", "torchtitan"]
    done = run(sys.executable, "-W", "ignore", "-m", "tests.integration.test_engines", folder, *names)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def run(*command: str) -> subprocess.CompletedProcess:
    values = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, timeout=300)


@pytest.mark.stack
@pytest.mark.parametrize(("engine", "rounding"), [("megatron", 1e-6), ("veomni", 0.0), ("torchtitan", 0.0)])
def test_verls_other_engines_get_fsdps_loss(engine: str, rounding: float, found: dict):
    if engine not in found:
        pytest.skip(f"pip has no way to get {' '.join(PACKAGES)}")
    loss, gradient, metrics = (found[engine][key] for key in ("loss", "gradient", "metrics"))
    assert loss == pytest.approx(found["fsdp"]["loss"], rel=rounding, abs=0)
    assert gradient <= rounding and 0 < metrics[PREFIX + "masked_share"] < 1
    # Megatron's log-probs, from its own softmax, differ by a few 1e-7; the others call the same function as FSDP
    assert metrics == pytest.approx(found["fsdp"]["metrics"], rel=10 * rounding, abs=rounding)


@pytest.mark.parametrize(
    ("strategy", "rollout", "estimator", "state"),
    [
        ("fsdp2", "vllm", "binary", "works"),
        ("fsdp", "vllm", "topk", "works"),
        ("fsdp2", "sglang", "binary", "untried"),
        ("fsdp2", "sglang", "topk", "refused"),
        ("megatron", "vllm", "binary", "untried"),
        ("megatron", "vllm", "topk", "refused"),
        ("another", "vllm", "binary", "untried"),
    ],
)
def test_the_start_says_what_was_tried(strategy: str, rollout: str, estimator: str, state: str):
    config = presets.compose("cppo", [])
    config.actor_rollout_ref.actor.strategy, config.actor_rollout_ref.rollout.name = strategy, rollout
    config.actor_rollout_ref.actor.policy_loss.estimator = estimator
    notes, problems = list(engines.notes(config)), list(engines.problems(config))
    assert (len(notes), len(problems)) == (state == "untried", state == "refused")
    for said in notes:
        assert f"strategy={strategy}" in said and f"rollout.name={rollout}" in said and engines.GAP in said
    for said in problems:
        assert (f"={strategy}" in said or f"={rollout}" in said) and "estimator=topk" in said and "set it to" in said


def test_the_page_says_the_same():
    section = (ROOT / "docs/gpu.md").read_text().split("## Engines and rollouts")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    said = {name: binary for names, binary, _ in rows for name in re.findall(r"\w+", names)}
    assert all(said[name].startswith("works") for name in engines.WORKS)
    assert all(said[name].startswith("never run") for name in engines.UNTRIED)


def test_skipping_an_update_needs_an_engine_that_looks():
    config = presets.compose("cppo", ["actor_rollout_ref.actor.policy_loss.on_nonfinite=skip"])
    assert list(engines.problems(config)) == []
    config.actor_rollout_ref.actor.strategy = "megatron"
    (said,) = engines.problems(config)
    assert "on_nonfinite=skip" in said and "strategy=megatron" in said and "raise" in said


# ---- the process that runs verl's forward steps


class AnyName(type):
    """Of classes that have whatever is asked of them: classes of the same kind."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyName(name, (), {"__init__": lambda self, *_, **__: None})


class TorchTitan(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any module of a package that is not there, with any name in it."""

    def find_spec(self, fullname, path=None, target=None):
        ours = fullname.partition(".")[0] == "torchtitan"
        return importlib.util.spec_from_loader(fullname, self, is_package=True) if ours else None

    def exec_module(self, module) -> None:
        module.__getattr__ = partial(AnyName.__getattr__, AnyName)  # type: ignore[method-assign]


class Model:
    """Hands out the raw logits of the packed sequences, whatever it is asked with."""

    pre_process = post_process = True
    config = SimpleNamespace(fp8=None, model_type="qwen3")

    def __init__(self, raw: torch.Tensor):
        self.raw, self.wrapped = raw, True

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


def fsdp(model: Model, data, loss, engine_class=None, **attributes):
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    values = {"module": model, "pad_to_length": None, "use_ulysses_sp": False, "ulysses_sequence_parallel_size": 1}
    config = SimpleNamespace(use_fused_kernels=False, mixed_precision={"param_dtype": "fp32"}, use_torch_compile=False)
    engine = bare(engine_class or FSDPEngineWithLMHead, engine_config=config, **{**values, **attributes})
    engine._get_packed_pad_size = lambda _: 0
    return engine.forward_step(data, loss_function=loss, forward_only=False)


def veomni(model: Model, data, loss):
    from verl.workers.engine.veomni.transformer_impl import VeOmniEngineWithLMHead

    return fsdp(model, data, loss, VeOmniEngineWithLMHead, _router_replay=None)


def torchtitan(model: Model, data, loss):
    sys.meta_path.append(TorchTitan())
    from verl.workers.engine.torchtitan.transformer_impl import TorchTitanEngineWithLMHead

    model.wrapped = False
    engine = bare(
        TorchTitanEngineWithLMHead,
        engine_config=SimpleNamespace(attn_type="varlen"),
        parallel_dims=SimpleNamespace(cp_enabled=False),
        model_forward_step=lambda **_: model(),
    )
    return engine.forward_step(data, loss_function=loss, forward_only=False)


def megatron(model: Model, data, loss):
    from megatron.core import parallel_state
    from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

    parallel_state.initialize_model_parallel()
    model.wrapped = False
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
    output, loss_function = engine.forward_step(iter([data]), model, loss, step)
    return loss_function(output)


def outcome(engine, micro: Micro):
    """Loss, gradient with respect to the raw logits, and the step's metrics."""
    data = micro.data(use_remove_padding=True, distillation_use_topk=False)
    del data[FIELD]
    tensordict_utils.assign_non_tensor(data, num_micro_batch=1)
    raw = torch.cat(micro.pi_logits).clone().requires_grad_()
    config = actor_config(estimator="binary", loss_mode="dppo", delta=0.02)
    loss, output = engine(Model(raw), data, partial(losses.trust_region_loss, config))
    loss.backward()
    metrics = losses.fold({name: [value.aggregate()] for name, value in output["metrics"].items()})
    return loss.item(), raw.grad, {name: values[0] for name, values in metrics.items()}


def main(folder: str, *names: str) -> None:
    sys.path.append(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    micro = Micro(lengths=((3, 5), (2, 9), (4, 7)), drift=1.0)
    found = {engine.__name__: outcome(engine, micro) for engine in (fsdp, *(globals()[name] for name in names))}
    expected = found["fsdp"][1]
    told = {}
    for name, (loss, gradient, metrics) in found.items():
        difference = ((gradient - expected).abs().max() / expected.abs().max()).item()
        told[name] = {"loss": loss, "gradient": difference, "metrics": metrics}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
