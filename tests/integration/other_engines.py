"""The loss as verl's Megatron, VeOmni and torchtitan engines call it: their own forward steps, on one CPU process.

``python -m tests.integration.other_engines FOLDER ENGINE...`` prints, for each and for FSDP, the loss, the metrics, and
the largest difference of its gradient with respect to the model's raw logits from FSDP's. The model itself is a
stand-in that hands out logits in the engine's layout; what lies before and after it is verl's code: inputs,
temperature, log-probs, batch statistics. Megatron and VeOmni are the packages; no released torchtitan has what verl
0.9.1 imports, so its names are stand-ins.
"""

import importlib.abc
import importlib.util
import json
import sys
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
import verl  # noqa: F401  (loads the plug-in)
from verl.utils import tensordict_utils

from cppo_verl.integration import losses
from cppo_verl.integration.topk import FIELD
from tests.integration.micro import Micro, actor_config


class AnyName(type):
    """Of classes that have whatever is asked of them: classes of the same kind."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyName(name, (), {"__init__": lambda self, *_, **__: None})


class Names(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any module of a package that is not there, with any name in it."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, fullname, path=None, target=None):
        ours = fullname.partition(".")[0] == self.package
        return importlib.util.spec_from_loader(fullname, self, is_package=True) if ours else None

    def exec_module(self, module) -> None:
        module.__getattr__ = partial(AnyName.__getattr__, AnyName)  # type: ignore[method-assign]


class Model:
    """Hands out the raw logits of the packed sequences, whatever it is asked with."""

    pre_process = post_process = True
    config = SimpleNamespace(fp8=None, model_type="qwen3")

    def __init__(self, raw: torch.Tensor, wrapped: bool):
        self.raw, self.wrapped = raw, wrapped

    def __call__(self, *_, **__):
        logits = self.raw.unsqueeze(0) * 1  # engines divide theirs in place
        return SimpleNamespace(logits=logits) if self.wrapped else logits


def batch_of(micro: Micro):
    data = micro.data(use_remove_padding=True, distillation_use_topk=False)
    del data[FIELD]
    tensordict_utils.assign_non_tensor(data, num_micro_batch=1)
    return data


def bare(engine_class, **attributes):
    """An engine with only what its forward step reads."""
    kind = type("Bare", (engine_class,), {"__init__": lambda self: None, "get_data_parallel_group": lambda self: None})
    engine = kind()
    for name, value in attributes.items():
        setattr(engine, name, value)
    return engine


def fsdp(model: Model, data, loss):
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    return _like_fsdp(FSDPEngineWithLMHead, model, data, loss)


def _like_fsdp(engine_class, model: Model, data, loss, **attributes):
    values = {"module": model, "pad_to_length": None, "use_ulysses_sp": False, "ulysses_sequence_parallel_size": 1}
    config = SimpleNamespace(use_fused_kernels=False, mixed_precision={"param_dtype": "fp32"}, use_torch_compile=False)
    engine = bare(engine_class, engine_config=config, **{**values, **attributes})
    engine._get_packed_pad_size = lambda _: 0
    return engine.forward_step(data, loss_function=loss, forward_only=False)


def veomni(model: Model, data, loss):
    from verl.workers.engine.veomni.transformer_impl import VeOmniEngineWithLMHead

    return _like_fsdp(VeOmniEngineWithLMHead, model, data, loss, _router_replay=None)


def torchtitan(model: Model, data, loss):
    sys.meta_path.append(Names("torchtitan"))
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
    raw = torch.cat(micro.pi_logits).clone().requires_grad_()
    config = actor_config(estimator="binary", loss_mode="dppo", delta=0.02)
    loss, output = engine(Model(raw, wrapped=True), batch_of(micro), partial(losses.trust_region_loss, config))
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
