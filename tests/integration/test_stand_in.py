"""The stand-in for flash-attn by definition, where ``test_engine_paths`` does not look: half precision."""

import pytest
import torch

from tests.stand_in.flash_attn.ops.triton.cross_entropy import cross_entropy_loss


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
