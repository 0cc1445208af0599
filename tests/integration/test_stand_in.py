"""The stand-in for flash-attn against definitions, and in force in a process that asks for it."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from verl.utils import attention_utils

from tests import ROOT, stand_in
from tests.stand_in.flash_attn import bert_padding, flash_attn_func, flash_attn_varlen_func
from tests.stand_in.flash_attn.ops.triton.cross_entropy import cross_entropy_loss

CUTS = torch.tensor([0, 5, 6, 13], dtype=torch.int32)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Of one sequence, by the definition; (length, heads, size), heads of k and v shared by groups of q's."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_packed_sequences(causal: bool):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(13, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    weight = torch.randn(13, 4, 8, generator=generator)
    found = flash_attn_varlen_func(q, k, v, CUTS, CUTS, 7, 7, causal=causal)
    sizes = CUTS.diff().tolist()
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    expected = torch.cat([attention(*part, causal) for part in parts])
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    whole = flash_attn_func(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), causal=causal).squeeze(0)
    torch.testing.assert_close(whole, attention(q, k, v, causal))


def test_attention_refuses_what_it_cannot_do():
    x = torch.zeros(13, 2, 8)
    with pytest.raises(ValueError, match="for 12 tokens"):
        flash_attn_varlen_func(x[:12], x, x, CUTS, CUTS, 7, 7)
    for option in ({"window_size": (3, 0)}, {"dropout_p": 0.1}, {"softcap": 1.0}):
        with pytest.raises(NotImplementedError, match=next(iter(option))):
            flash_attn_varlen_func(x, x, x, CUTS, CUTS, 7, 7, **option)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [True, False])
def test_cross_entropy(dtype: torch.dtype, inplace: bool):
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(6, 11, generator=generator).to(dtype), torch.tensor([0, 3, 3, 10, 7, 1])
    weight, leaf = torch.randn(6, generator=generator), logits.clone().requires_grad_()
    losses, _ = cross_entropy_loss(leaf, labels, inplace_backward=inplace)
    exact = logits.float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    (gradient,) = torch.autograd.grad((losses * weight).sum(), leaf)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), exact)
    torch.testing.assert_close(gradient, wanted.to(dtype))
    assert (gradient.data_ptr() == leaf.data_ptr()) is inplace


def test_padding_is_verls_fallback():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    x = torch.randn(3, 4, 2)
    ours, verls = bert_padding.unpad_input(x, mask), attention_utils._fallback_unpad_input(x, mask)
    for a, b in zip(ours, verls, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert torch.equal(bert_padding.index_first_axis(x, torch.tensor([2, 0])), x[[2, 0]])
    assert torch.equal(bert_padding.pad_input(ours[0], ours[1], 3, 4), x * mask.unsqueeze(-1))


@pytest.mark.stack
def test_verl_and_transformers_find_it():
    source = (
        "import verl, torch; from transformers.utils import is_flash_attn_2_available as found;"
        "from verl.utils import torch_functional as f; from verl.utils.attention_utils import _get_attention_functions;"
        "print(found(), f.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE, _get_attention_functions()[0].__module__,"
        " torch.cuda.is_available())"
    )
    environment = {**stand_in.environment(), "VERL_PLATFORM": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "True", "flash_attn.bert_padding", "False"], done.stderr[-2000:]
