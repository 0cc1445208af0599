"""The logits of mu's top-K where verl's fused kernels make no logits: from hidden states and K + 1 rows of the LM head.

verl's FSDP engine calls no logits processor then. The engine here is verl's with one forward hook on the decoder: it
sees the hidden states while the LM head's weight is gathered, and takes h . W_k / temperature. The normaliser follows
from the kernel's own log-prob of the sampled token, as with gathered logits. 0.3 ms at most for 8,192 tokens of hidden
size 4,096 at 4.8 TB/s, and at most ``ROWS`` x (K + 1) rows of the LM head in memory.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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


@torch.no_grad()
def logits_at(hidden: Tensor, weight: Tensor, index: Tensor, temperature: float, rounded: bool = True) -> Tensor:
    """Logits of chosen tokens, (..., columns) float32, without a graph.

    They are rounded where the kernel rounds its own, so that the sampled token's logit is the one behind its log-prob:
    the normaliser follows from the two, and half a unit in the last place of a bfloat16 logit of 20 is 6%.

    Args:
        hidden: (..., size). weight: (vocabulary, size). index: (..., columns) int64.
        rounded: to the model's dtype, after the product and after the division, as verl's ``torch`` kernel does; its
            ``triton`` kernel keeps float32.
    """
    dtype = weight.dtype if rounded else torch.float32
    flat, columns = hidden.detach().flatten(0, -2), index.flatten(0, -2)
    parts = []
    with nullcontext() if rounded else torch.autocast(hidden.device.type, enabled=False):
        for states, which in zip(flat.split(ROWS), columns.split(ROWS), strict=True):
            product = torch.bmm(weight.detach()[which].to(dtype), states.unsqueeze(-1).to(dtype))
            parts.append(product.squeeze(-1).div_(temperature).float())
    return torch.cat(parts).view(index.shape)


def rounds(model: torch.nn.Module) -> bool:
    """Whether verl's fused forward of this model rounds logits to the model's dtype: all but the triton backend's."""
    return "triton" not in type(model).forward.__name__


@dataclass
class Request:
    """What the forward hook is to look at, and the logits that it found there: both (..., K + 1)."""

    index: Tensor
    temperature: float
    found: Tensor | None = None


class TopKEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine; with fused kernels and a top-K batch it adds the chosen logits to the model's output."""

    request: Request | None = None  # of the micro-batch at hand
    watched: torch.nn.Module | None = None  # whose decoder has our hook

    def prepare_model_inputs(self, micro_batch: TensorDict):
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        self.request = None
        if _flag(micro_batch, "use_fused_kernels", False) and asked(micro_batch):
            self._watch()
            index = _index(micro_batch, inputs["input_ids"].shape[-1])
            self.request = Request(index, float(micro_batch["temperature"]))
        return inputs, output_args

    def _watch(self) -> None:
        model: Any = getattr(self.module, "_fsdp_wrapped_module", self.module)
        if self.watched is not model:
            self.watched = model
            model.get_decoder().register_forward_hook(lambda _, __, output: self._look(model, output[0]))

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
        recomputing = logits_processor_func is None and asked(micro_batch)
        k = _flag(micro_batch, "topk", None)
        if recomputing:  # no loss follows: this pass makes log-probs, of the policy that is to be the anchor

            def logits_processor_func(student_logits: Tensor, data: TensorDict) -> dict[str, Tensor]:
                return gather_logits(student_logits, data, k)

        model_output = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        if self.request is not None:
            unpad = partial(self._gather_and_unpad_packed, pad_size=output_args.get("pad_size"))
            model_output |= _nested(self.request, micro_batch, unpad)
            self.request = None
        if recomputing:
            model_output[PROXIMAL] = take_log_probs(model_output, k)
        return model_output


def _index(micro_batch: TensorDict, length: int) -> Tensor:
    """Vocabulary indices in the shape of the model's input: (1, tokens of this rank, K + 1), or (batch, length, K + 1).

    Args:
        length: of that input.
    """
    k = _flag(micro_batch, "topk", None)
    if _flag(micro_batch, "use_remove_padding", True):
        return local_index(micro_batch, k, length).unsqueeze(0)
    lengths = micro_batch["input_ids"].offsets().diff().tolist()
    rows = local_index(micro_batch, k, sum(lengths)).split(lengths)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _nested(request: Request, micro_batch: TensorDict, unpad) -> dict[str, Tensor]:
    """The logits that were found, named, each nested (batch, tokens); ``unpad`` gathers what the ranks have of one."""
    if request.found is None:
        raise KnobError(f"{KEY_PREFIX}.estimator=topk with use_fused_kernels: the model hid its hidden states")
    offsets = micro_batch["input_ids"].offsets()
    if _flag(micro_batch, "use_remove_padding", True):
        found = torch.stack([unpad(column.squeeze(0)) for column in request.found.unbind(-1)], -1)
    else:
        valid = torch.arange(request.found.shape[1], device=offsets.device) < offsets.diff().unsqueeze(-1)
        found = request.found[valid]
    jagged = torch.nested.nested_tensor_from_jagged
    return {name: jagged(values.squeeze(0), offsets) for name, values in named(found).items()}


def _flag(micro_batch: TensorDict, key: str, default):
    return tensordict_utils.get_non_tensor_data(data=micro_batch, key=key, default=default)


def register() -> None:
    """Put ``TopKEngine`` wherever verl's registry holds the engine it extends, whatever the device."""
    for devices in EngineRegistry._engines["language_model"].values():
        for device, engine in devices.items():
            if engine is FSDPEngineWithLMHead:
                devices[device] = TopKEngine
