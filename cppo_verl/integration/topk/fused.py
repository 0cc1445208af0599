"""The logits of mu's top-K where verl's fused kernels make no logits: from hidden states and K + 1 rows of the LM head.

verl's FSDP engine calls no logits processor then. The engine here is verl's with one forward hook on the decoder: it
sees the hidden states while the LM head's weight is gathered, and takes h . W_k / temperature. The normaliser follows
from the kernel's own log-prob of the sampled token, as with gathered logits.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.workers.engine.fsdp.transformer_impl import EngineRegistry, FSDPEngineWithLMHead

from cppo_verl.integration.topk import logits
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


class TopKEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine; with fused kernels and a top-K batch it adds the chosen logits to the model's output."""

    index: Tensor | None = None  # of the micro-batch at hand: what the hook is to look at, in the shape of the input
    found: Tensor | None = None  # the logits there
    temperature: float
    watched: torch.nn.Module | None = None  # whose decoder has our hook

    def prepare_model_inputs(self, micro_batch: TensorDict):
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        self.index = self.found = None
        if logits.flag(micro_batch, "use_fused_kernels", False) and logits.asked(micro_batch):
            model: Any = getattr(self.module, "_fsdp_wrapped_module", self.module)
            if self.watched is not model:
                self.watched = model
                model.get_decoder().register_forward_hook(lambda _, __, output: self._look(model, output[0]))
            self.index = _index(micro_batch, inputs["input_ids"].shape[-1])
            self.temperature = float(micro_batch["temperature"])
        return inputs, output_args

    def _look(self, model: Any, hidden: Tensor) -> None:
        if self.index is None:
            return
        weight = model.get_output_embeddings().weight
        if isinstance(weight, DTensor):
            raise KnobError(
                f"{KEY_PREFIX}.estimator=topk with use_fused_kernels: the LM head is sharded on its own, so its rows "
                "are not at hand; set actor_rollout_ref.model.use_fused_kernels=False."
            )
        self.found = logits_at(hidden, weight, self.index, self.temperature, rounded=rounds(model))

    def prepare_model_outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        k = logits.flag(micro_batch, "topk", None)
        # where no loss follows, this pass makes the log-probs of the policy that is to be the anchor
        recomputing = logits_processor_func is None and logits.asked(micro_batch)
        processor = partial(logits.gather_logits, k=k) if recomputing else logits_processor_func
        model_output = super().prepare_model_outputs(output, output_args, micro_batch, processor)
        offsets = micro_batch["input_ids"].offsets()
        nested: Any = torch.nested.nested_tensor_from_jagged
        if self.index is not None:
            named = logits.named(self._unpadded(micro_batch, output_args.get("pad_size")))
            model_output |= {name: nested(values.squeeze(0), offsets) for name, values in named.items()}
            self.index = self.found = None
        if not recomputing:
            return model_output
        others = {k: v for k, v in model_output.items() if not k.startswith((logits.CHOSEN, logits.NORMALISER))}
        return others | {logits.PROXIMAL: nested(logits.log_probs_of(model_output, k), offsets)}

    def _unpadded(self, micro_batch: TensorDict, pad_size: int) -> Tensor:
        """The logits that were found, (tokens, K + 1), gathered from the ranks that share the sequences."""
        if self.found is None:
            raise KnobError(f"{KEY_PREFIX}.estimator=topk with use_fused_kernels: the model hid its hidden states")
        if logits.flag(micro_batch, "use_remove_padding", True):
            return self._gather_and_unpad_packed(self.found.squeeze(0), pad_size)
        lengths = micro_batch["input_ids"].offsets().diff()
        return self.found[torch.arange(self.found.shape[1], device=lengths.device) < lengths.unsqueeze(-1)]


def _index(micro_batch: TensorDict, length: int) -> Tensor:
    """Vocabulary indices in the shape of the model's input: (1, tokens of this rank, K + 1), or (batch, length, K + 1).

    Args:
        length: of that input.
    """
    k = logits.flag(micro_batch, "topk", None)
    if logits.flag(micro_batch, "use_remove_padding", True):
        return logits.local_index(micro_batch, k, length).unsqueeze(0)
    lengths = micro_batch["input_ids"].offsets().diff().tolist()
    rows = logits.local_index(micro_batch, k, sum(lengths)).split(lengths)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def register() -> None:
    """Put ``TopKEngine`` wherever verl's registry holds the engine it extends, whatever the device."""
    for devices in EngineRegistry._engines["language_model"].values():
        for device, engine in devices.items():
            if engine is FSDPEngineWithLMHead:
                devices[device] = TopKEngine
