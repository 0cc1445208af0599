"""Stage ``losses``: inside verl, on the device: gradients of the registered losses, and the top-K from logits to D_t.

Against float64 on the CPU from the same inputs. The top-K goes the way of a run: a packed micro-batch, verl's engine
between logits and log-probs (flash-attention's cross-entropy where it is installed), our gather, mu's coded top-K.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cppo_verl.selftest.inputs import K, engine_output, exact_divergence, micro_batch, moved, packed, responses
from cppo_verl.selftest.measure import registered_losses
from cppo_verl.trust_region import topk
from cppo_verl.trust_region.tokens import Tokens

GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}  # relative error of a token's gradient
NEAR = 1e-4  # share of tokens whose decision may fall to the other side by rounding
# limits of |D_t - float64|: coding of mu's top-K, and the rounding of verl's log-prob from half-precision logits
EXACT, ROUNDED = topk.tv_coding_bound(K) + 2e-6, 1e-2
SHORT = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@pytest.mark.parametrize("dtype", SHORT, ids=SHORT.values())
def test_gradients(dtype, setting, table):
    """d loss / d log pi of every token; in bfloat16 of our losses alone, for verl's compute in the dtype they get."""
    here = moved(responses(*((24, 512) if setting.on_cpu else (64, 2048))), setting.device, dtype)
    exact, differ = moved(here, "cpu", torch.float64), {}
    for name, loss in registered_losses().items():
        if dtype == torch.float32 or "(verl)" not in name:
            same = torch.isclose(gradient(loss, here), gradient(loss, exact), rtol=GRADIENT[dtype], atol=0.0)
            differ[name] = 1 - float(same[exact.mask].double().mean())
    worst = max(differ, key=differ.__getitem__)
    said = f"gradients of {len(differ)} losses, {SHORT[dtype]}: share that differs by {GRADIENT[dtype]:.1g}"
    table.at_most(said, differ[worst], NEAR, note=f"the largest: {worst}" if differ[worst] else "")


def gradient(loss: Callable, batch: Tokens) -> Tensor:
    """As float64 on the CPU."""
    leaf = batch.log_prob.detach().clone().requires_grad_()
    loss(leaf, batch.old_log_prob, batch.advantages, batch.mask)[0].backward()
    assert leaf.grad is not None
    return leaf.grad.double().cpu()


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float32, 0.7), (torch.bfloat16, 1.0)], ids=SHORT.values())
def test_topk_from_logits(dtype, temperature, setting, table):
    """From pi's raw logits through verl's engine to the loss's D_t."""
    from cppo_verl.integration.topk import logits

    micro = micro_batch(*((4096, 48) if setting.on_cpu else (151_936, 256)), dtype, temperature)
    data = packed(micro, setting.device, temperature)
    raw = torch.cat([pi for _, _, pi, _ in micro]).to(setting.device)
    output = engine_output(raw.requires_grad_().clone(), data)
    limit = EXACT if logits.sampled_log_prob_is_exact(dtype) else ROUNDED
    for kind in topk.TOPK:
        found, _ = logits.divergence_of(output, data, kind, K)
        exact = [exact_divergence(sequence, temperature, kind) for sequence in micro]
        errors = [(row[: len(x)].double().cpu() - x).abs().max() for row, x in zip(found, exact, strict=True)]
        table.at_most(f"top-K {kind.upper()} from {SHORT[dtype]} logits: largest error", float(max(errors)), limit)
