"""Stage ``losses``: inside verl, on the device: gradients of the registered losses, and the top-K from logits to D_t.

Against float64 on the CPU from the same inputs. The top-K goes the way of a run: a packed micro-batch, verl's engine
between logits and log-probs (flash-attention's cross-entropy where it is installed), our gather, mu's coded top-K.
"""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from cppo_verl.selftest.batches import Batch, binary_batch
from cppo_verl.selftest.loss_speed import registered_losses
from cppo_verl.selftest.micro_batch import K, engine_output, exact_divergence, micro_batch, packed
from cppo_verl.trust_region import topk

GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}  # largest relative error of a token's gradient
NEAR = 1e-4  # share of tokens whose decision may fall to the other side by rounding
# limits of |D_t - float64|: coding of mu's top-K, and the rounding of verl's log-prob from half-precision logits
EXACT, ROUNDED = topk.tv_coding_bound(K) + 2e-6, 1e-2
SHORT = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@pytest.mark.parametrize("dtype", SHORT, ids=SHORT.values())
def test_gradients(dtype, setting, table):
    """d loss / d log pi of every token; in bfloat16 of our losses alone, for verl's compute in the dtype they get."""
    batch = binary_batch(*((24, 512) if setting.on_cpu else (64, 2048))).to(setting.device, dtype)
    exact_batch = batch.to("cpu", torch.float64)
    ours = {n: loss for n, loss in registered_losses().items() if dtype == torch.float32 or "(verl)" not in n}
    errors, elsewhere = {}, {}
    for name, loss in ours.items():
        here, exact = gradient(loss, batch), gradient(loss, exact_batch)
        error = ((here - exact).abs() / exact.abs())[(here != 0) & (exact != 0)]
        errors[name] = float(error.max().nan_to_num(nan=torch.inf)) if error.numel() else torch.inf
        elsewhere[name] = float(((here != 0) ^ (exact != 0))[batch.mask.cpu()].double().mean())
    said = f"gradients of {len(ours)} losses, {SHORT[dtype]}"
    table.at_most(f"{said}: largest relative error", max(errors.values()), GRADIENT[dtype], note=worst(errors))
    table.at_most(f"{said}: share decided otherwise", max(elsewhere.values()), NEAR, note=worst(elsewhere))


def worst(values: Mapping[str, float]) -> str:
    """The name of the largest, if one is above 0."""
    return "the largest: " + max(values, key=values.__getitem__) if any(values.values()) else ""


def gradient(loss: Callable, batch: Batch) -> Tensor:
    """As float64 on the CPU."""
    leaf = batch.log_prob.detach().clone().requires_grad_()
    loss(leaf, batch.old_log_prob, batch.advantages, batch.mask)[0].backward()
    assert leaf.grad is not None
    return leaf.grad.double().cpu()


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float32, 0.7), (torch.bfloat16, 1.0)], ids=SHORT.values())
def test_topk_from_logits(dtype, temperature, setting, table):
    """From pi's raw logits through verl's engine to the loss's D_t."""
    from cppo_verl.integration.topk import logits

    vocabulary, longest = (4096, 48) if setting.on_cpu else (151_936, 256)
    micro = micro_batch(vocabulary, longest, dtype, temperature)
    data = packed(micro, setting.device, temperature)
    raw = torch.cat([pi for _, _, pi, _ in micro]).to(setting.device)
    output = engine_output(raw.requires_grad_().clone(), data)
    limit = EXACT if logits.sampled_log_prob_is_exact(dtype) else ROUNDED
    for kind in ("tv", "kl"):
        found, _ = logits.divergence_of(output, data, kind, K)
        exact = [exact_divergence(*sequence, temperature, kind) for sequence in micro]
        errors = [(row[: len(x)].double().cpu() - x).abs().max() for row, x in zip(found, exact, strict=True)]
        table.at_most(f"top-K {kind.upper()} from {SHORT[dtype]} logits: largest error", float(max(errors)), limit)
