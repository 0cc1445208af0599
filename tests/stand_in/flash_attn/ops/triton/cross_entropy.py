"""flash-attn's cross-entropy as verl calls it: float32 losses from logits of any dtype, the gradient in their place."""

import torch
from torch import Tensor


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, inplace_backward: bool) -> Tensor:
        normaliser = logits.float().logsumexp(-1)
        ctx.save_for_backward(logits, labels, normaliser)
        ctx.inplace_backward = inplace_backward
        return normaliser - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        logits, labels, normaliser = ctx.saved_tensors
        slope = (logits.float() - normaliser.unsqueeze(-1)).exp_()
        slope.scatter_add_(-1, labels.unsqueeze(-1), -torch.ones_like(normaliser).unsqueeze(-1))
        slope.mul_(gradients[0].unsqueeze(-1))
        if not ctx.inplace_backward:
            return slope.to(logits.dtype), None, None
        return logits.data.copy_(slope), None, None  # the kernel, too, writes where autograd does not look


def cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    precomputed_lse: Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group=None,
) -> tuple[Tensor, Tensor]:
    """logits (rows, vocabulary), labels (rows,) int64; losses (rows,) float32 and zeros for the z-losses.

    Raises:
        NotImplementedError: for what verl does not ask for.
    """
    if precomputed_lse is not None or label_smoothing or logit_scale != 1 or lse_square_scale or process_group:
        raise NotImplementedError("stand-in for flash-attn: cross_entropy_loss takes logits, labels, inplace_backward")
    if (labels == ignore_index).any():
        raise NotImplementedError(f"stand-in for flash-attn: labels of {ignore_index}")
    losses = _CrossEntropy.apply(logits, labels, inplace_backward)
    return losses, torch.zeros_like(losses)
