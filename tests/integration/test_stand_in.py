"""The stand-in for flash-attn by definition, where ``test_engine_paths`` does not look: bfloat16, and refusals."""

import pytest
import torch
from torch import Tensor

from tests.stand_in.flash_attn import flash_attn_func, flash_attn_varlen_func
from tests.stand_in.flash_attn.ops.triton.cross_entropy import cross_entropy_loss

CUTS = torch.tensor([0, 5, 6, 13], dtype=torch.int32)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, of one sequence, by the definition; (length, heads, size), heads of k and v shared by groups of q's."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def test_attention_of_packed_sequences():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(13, heads, 8, generator=generator) for heads in (4, 2, 2))
    parts = zip(*(x.split(CUTS.diff().tolist()) for x in (q, k, v)), strict=True)
    found = flash_attn_varlen_func(q, k, v, CUTS, CUTS, 7, 7, causal=True)
    torch.testing.assert_close(found, torch.cat([attention(*part) for part in parts]))
    whole = flash_attn_func(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), causal=True).squeeze(0)
    torch.testing.assert_close(whole, attention(q, k, v))


def test_attention_refuses_what_it_cannot_do():
    x = torch.zeros(13, 2, 8)
    with pytest.raises(ValueError, match="for 12 tokens"):
        flash_attn_varlen_func(x[:12], x, x, CUTS, CUTS, 7, 7)
    for option in ({"window_size": (3, 0)}, {"dropout_p": 0.1}, {"softcap": 1.0}):
        with pytest.raises(NotImplementedError, match=next(iter(option))):
            flash_attn_varlen_func(x, x, x, CUTS, CUTS, 7, 7, **option)


@pytest.mark.parametrize("inplace", [True, False])
def test_cross_entropy_of_half_precision(inplace: bool):
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(6, 11, generator=generator).bfloat16(), torch.tensor([0, 3, 3, 10, 7, 1])
    leaf, exact = logits.clone().requires_grad_(), logits.float().requires_grad_()
    losses, _ = cross_entropy_loss(leaf, labels, inplace_backward=inplace)
    expected = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    (gradient,), (wanted,) = (torch.autograd.grad(x.sum(), of) for x, of in ((losses, leaf), (expected, exact)))
    torch.testing.assert_close(gradient, wanted.bfloat16())
    assert (gradient.data_ptr() == leaf.data_ptr()) is inplace
