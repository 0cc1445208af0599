"""From padded to packed and back, with flash-attn 2.8's signatures."""

import torch
from einops import rearrange  # noqa: F401  (flash-attn's module has it, and verl imports it from there)
from torch import Tensor


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    return x[indices]


def unpad_input(hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """hidden_states (batch, length, ...), attention_mask (batch, length) of 0 and 1.

    Returns:
        the tokens (tokens, ...), their places in batch x length, cu_seqlens (batch + 1,) int32, the longest length, and
        the lengths (batch,) int32.
    """
    lengths = attention_mask.sum(-1, dtype=torch.int32)
    where = attention_mask.flatten().nonzero().squeeze(-1)
    cuts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden_states.flatten(0, 1)[where], where, cuts, int(lengths.max()), lengths


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The tokens (tokens, ...) back at their places: (batch, seqlen, ...), zeros elsewhere."""
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return padded.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))
