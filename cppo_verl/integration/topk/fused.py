"""The logits of mu's top-K where verl's fused kernels make no logits: from hidden states and K + 1 rows of the LM head.

verl's FSDP engine calls no logits processor then. The engine here is verl's with one forward hook on the base model: it
sees the hidden states while the LM head's weight is gathered, and takes h . W_k / temperature. The normaliser follows
from the kernel's own log-prob of the sampled token, as with gathered logits. 0.3 ms at most for 8,192 tokens of hidden
size 4,096 at 4.8 TB/s, and at most ``ROWS`` x (K + 1) rows of the LM head in memory.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils
from verl.workers.engine.fsdp.transformer_impl import EngineRegistry, FSDPEngineWithLMHead

from cppo_verl.integration.topk.logits import PROXIMAL, asked, gather_logits, local_index, named, take_log_probs
from cppo_verl.trust_region.knobs import KEY_PREFIX, KnobError

ROWS = 256  # tokens whose rows of the LM head are copied at a time: 44 MB in bfloat16 at K = 20 and hidden size 4,096


def logits_at(
    hidden: Tensor, weight: Tensor, index: Tensor, temperature: float, rows: int = ROWS, rounded: bool = True
) -> Tensor:
    """Logits of chosen tokens, (..., columns) float32, without a graph.

    They are rounded where the kernel rounds its own, so that the sampled token's logit is the one behind its log-prob:
    the normaliser follows from the two, and half a unit in the last place of a bfloat16 logit of 20 is 6%.

    Args:
        hidden: (..., size). weight: (vocabulary, size). index: (..., columns) int64.
        rounded: to the model's dtype, after the product and after the division, as verl's ``torch`` kernel does; its
            ``triton`` kernel keeps float32.
    """
    with torch.no_grad(), nullcontext() if rounded else torch.autocast(hidden.device.type, enabled=False):
        flat, columns = hidden.detach().flatten(0, -2), index.flatten(0, -2)
        weight = weight.detach()
        dtype = weight.dtype if rounded else torch.float32
        parts = [
            torch.bmm(weight[which].to(dtype), part.unsqueeze(-1).to(dtype)).squeeze(-1).div_(temperature).float()
            for part, which in zip(flat.split(rows), columns.split(rows), strict=True)
        ]
        return torch.cat(parts).view(index.shape)


def rounds(model: torch.nn.Module) -> bool:
    """Whether verl's fused forward of this model rounds logits to the model's dtype: all but the triton backend's."""
    return "triton" not in type(model).forward.__name__


@dataclass
class Request:
    """What the forward hook is to look at, and what it found: both (..., K + 1)."""

    index: Tensor
    temperature: float
    found: Tensor | None = None


class TopKEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine; with fused kernels and a top-K batch it adds the chosen logits to the model's output."""

    request: Request | None = None
    watched: torch.nn.Module | None = None

    def prepare_model_inputs(self, micro_batch: TensorDict):
        prepared = super().prepare_model_inputs(micro_batch)
        self.request = self._request(micro_batch, prepared[0]) if _fused(micro_batch) and asked(micro_batch) else None
        return prepared

    def _request(self, micro_batch: TensorDict, model_inputs: dict) -> Request:
        k = tensordict_utils.get_non_tensor_data(data=micro_batch, key="topk", default=None)
        if _packed(micro_batch):
            index = local_index(micro_batch, k, model_inputs["input_ids"].shape[-1]).unsqueeze(0)
        else:
            lengths = micro_batch["input_ids"].offsets().diff().tolist()
            rows = local_index(micro_batch, k, sum(lengths)).split(lengths)
            index = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        self._watch()
        return Request(index, float(micro_batch["temperature"]))

    def _watch(self) -> None:
        """Hook the base model once; its output is what the fused kernels take."""
        model = getattr(self.module, "_fsdp_wrapped_module", self.module)
        if self.watched is model:
            return
        self.watched = model
        model.base_model.register_forward_hook(lambda _, __, output: self._look(model, output[0]))

    def _look(self, model: Any, hidden: Tensor) -> None:
        if self.request is None:
            return
        weight = model.get_output_embeddings().weight
        if isinstance(weight, DTensor):
            raise KnobError(
                f"{KEY_PREFIX}.estimator=topk with use_fused_kernels: the LM head is sharded on its own, so its rows "
                "are not at hand; set actor_rollout_ref.model.use_fused_kernels=False."
            )
        index, temperature = self.request.index, self.request.temperature
        self.request.found = logits_at(hidden, weight, index, temperature, rounded=rounds(model))

    def prepare_model_outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        if logits_processor_func is not None or not asked(micro_batch):
            return self._with_chosen(output, output_args, micro_batch, logits_processor_func)
        # no loss follows: this is the pass that recomputes log-probs, and the anchor is the policy that runs it
        k = tensordict_utils.get_non_tensor_data(data=micro_batch, key="topk", default=None)
        model_output = self._with_chosen(
            output, output_args, micro_batch, lambda student_logits, data: gather_logits(student_logits, data, k)
        )
        model_output[PROXIMAL] = take_log_probs(model_output, k)
        return model_output

    def _with_chosen(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        model_output = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        request, self.request = self.request, None
        if request is None:
            return model_output
        if request.found is None:
            raise KnobError(f"{KEY_PREFIX}.estimator=topk with use_fused_kernels: the model hid its hidden states")
        offsets = micro_batch["input_ids"].offsets()
        if _packed(micro_batch):
            found = [self._gather_and_unpad_packed(x.squeeze(0), output_args["pad_size"]) for x in _columns(request)]
        else:
            valid = torch.arange(request.index.shape[1], device=offsets.device) < offsets.diff().unsqueeze(-1)
            found = [x[valid] for x in _columns(request)]
        for name, values in named(torch.stack(found, -1)).items():
            model_output[name] = torch.nested.nested_tensor_from_jagged(values.squeeze(0), offsets)
        return model_output


def _columns(request: Request) -> tuple[Tensor, ...]:
    assert request.found is not None
    return request.found.unbind(-1)


def _fused(micro_batch: TensorDict) -> bool:
    return tensordict_utils.get_non_tensor_data(data=micro_batch, key="use_fused_kernels", default=False)


def _packed(micro_batch: TensorDict) -> bool:
    return tensordict_utils.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)


def register() -> None:
    """Put ``TopKEngine`` wherever verl's registry holds the engine it extends, whatever the device."""
    for devices in EngineRegistry._engines["language_model"].values():
        for device, engine in devices.items():
            if engine is FSDPEngineWithLMHead:
                devices[device] = TopKEngine
