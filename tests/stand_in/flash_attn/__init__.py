"""Attention with flash-attn 2.8's signatures, as far as transformers uses them, in plain torch; without windows."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__version__ = "2.8.3+stand.in"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """q (batch, length, heads, size); k, v (batch, length of k, heads of k, size). Causal ends at the last tokens."""
    if dropout_p or softcap or tuple(window_size) != (-1, -1):
        raise NotImplementedError(f"stand-in for flash-attn: {dropout_p=}, {softcap=}, {window_size=}")
    lengths = q.shape[1], k.shape[1]
    mask = torch.ones(lengths, dtype=torch.bool, device=q.device).tril(lengths[1] - lengths[0]) if causal else None
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=softmax_scale, enable_gqa=True).transpose(
        1, 2
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """``flash_attn_func`` of each sequence on its own; q (all tokens, heads, size), cut at ``cu_seqlens_q``.

    Raises:
        ValueError: when the cuts do not cover the tokens, which flash-attn would not notice.
    """
    for name, cuts, tokens, most in (("q", cu_seqlens_q, q, max_seqlen_q), ("k", cu_seqlens_k, k, max_seqlen_k)):
        if int(cuts[0]) != 0 or int(cuts[-1]) != len(tokens) or int(cuts.diff().max()) > int(most):
            raise ValueError(f"cu_seqlens_{name}={cuts.tolist()} for {len(tokens)} tokens, max_seqlen_{name}={most}")
    sizes = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    parts = zip(q.split(sizes[0]), k.split(sizes[1]), v.split(sizes[1]), strict=True)
    options = dropout_p, softmax_scale, causal, window_size, softcap
    return torch.cat([flash_attn_func(*(x.unsqueeze(0) for x in part), *options).squeeze(0) for part in parts])


def flash_attn_with_kvcache(*_, **__) -> Tensor:
    """transformers imports it; only generation calls it."""
    raise NotImplementedError("stand-in for flash-attn: flash_attn_with_kvcache")
