"""Attention with flash-attn 2.8's signatures, in plain torch. Each returns the output alone."""

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
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """q (batch, length, heads, size); k, v (batch, length of k, heads of k, size). Causal is aligned at the last token.

    Raises:
        NotImplementedError: for what no test needs.
    """
    _refuse(dropout_p=dropout_p, softcap=softcap, alibi_slopes=alibi_slopes, return_attn_probs=return_attn_probs)
    if tuple(window_size) != (-1, -1):
        raise NotImplementedError(f"stand-in for flash-attn: window_size={window_size}")
    lengths = q.shape[1], k.shape[1]
    mask = torch.ones(lengths, dtype=torch.bool, device=q.device).tril(lengths[1] - lengths[0]) if causal else None
    output = scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=softmax_scale, enable_gqa=True
    )
    return output.transpose(1, 2)


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
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """``flash_attn_func`` of each sequence on its own; q (all tokens, heads, size), cut at ``cu_seqlens_q``.

    Raises:
        ValueError: when the cuts do not cover the tokens, which flash-attn would not notice.
        NotImplementedError: for what no test needs.
    """
    _refuse(block_table=block_table)
    for name, cuts, tokens, most in (("q", cu_seqlens_q, q, max_seqlen_q), ("k", cu_seqlens_k, k, max_seqlen_k)):
        if int(cuts[0]) != 0 or int(cuts[-1]) != len(tokens) or int(cuts.diff().max()) > int(most):
            raise ValueError(f"cu_seqlens_{name}={cuts.tolist()} for {len(tokens)} tokens, max_seqlen_{name}={most}")
    sizes = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    parts = zip(q.split(sizes[0]), k.split(sizes[1]), v.split(sizes[1]), strict=True)
    rest = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs)
    return torch.cat([flash_attn_func(*(x.unsqueeze(0) for x in part), *rest).squeeze(0) for part in parts])


def flash_attn_with_kvcache(*_, **__) -> Tensor:
    """transformers imports it; only generation calls it.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError("stand-in for flash-attn: flash_attn_with_kvcache")


def _refuse(**options: object) -> None:
    for name, value in options.items():
        if value is not None and value is not False and value != 0.0:
            raise NotImplementedError(f"stand-in for flash-attn: {name}={value}")
