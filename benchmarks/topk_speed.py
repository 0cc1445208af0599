"""Forward + backward of an LM head and its log-probs: binary, with top-K as the package gathers it, and with a second
softmax as DPPO's fork of verl does; the first two also without logits. In turns, on the same tensors.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cppo_verl.selftest.timing import Clock, medians, peak_bytes
from cppo_verl.trust_region import topk

CHUNK = 512  # tokens a chunk of the fused head


@dataclass
class Case:
    """One shape: hidden states and LM head with gradients, labels, mu's top-K, and what the loss hands back."""

    hidden: Tensor
    head: Tensor
    labels: Tensor
    ids: Tensor
    log_mu: Tensor
    old_log_prob: Tensor
    gradient: Tensor

    @classmethod
    def make(cls, tokens: int, size: int, vocabulary: int, k: int, device: str, dtype: torch.dtype) -> "Case":
        random: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
        hidden = torch.randn(tokens, size, **random).to(dtype)
        head = (torch.randn(vocabulary, size, **random) * size**-0.5).to(dtype)
        labels = torch.randint(0, vocabulary, (tokens,), **random)
        ids = torch.randint(0, vocabulary, (tokens, k), **random)
        log_mu = torch.randn(tokens, k, **random).log_softmax(-1) - 0.1
        old_log_prob = torch.full((tokens,), -4.0, device=device)
        gradient = torch.randn(tokens, **random)
        return cls(hidden.requires_grad_(), head.requires_grad_(), labels, ids, log_mu, old_log_prob, gradient)

    @property
    def index(self) -> Tensor:
        """The K listed tokens and the sampled one, (tokens, K + 1)."""
        return torch.cat([self.ids, self.labels.unsqueeze(-1)], -1)

    def finish(self, log_prob: Tensor, log_pi: Tensor | None) -> None:
        """The loss's share: D_t, then the backward pass."""
        with torch.no_grad():
            now = log_prob.detach()
            if log_pi is None:
                divergence = (now.exp() - self.old_log_prob.exp()).abs()
            else:
                divergence = topk.topk_tv(log_pi, self.log_mu, now, self.old_log_prob)
            coefficient = self.gradient * (divergence <= 0.15)
        torch.autograd.backward([log_prob], [coefficient.to(log_prob.dtype)])
        self.hidden.grad = self.head.grad = None


def sampled_log_prob(logits: Tensor, labels: Tensor) -> Tensor:
    """log pi(y), float32, by cross entropy; the float32 copy of the logits is autograd's, as in verl without flash."""
    return -torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


# ---- what is added to the forward: K + 1 logits a token, another softmax, or rows of the LM head


@torch.no_grad()
def gathered(case: Case, logits: Tensor) -> Tensor:
    return logits.detach().gather(-1, case.index).float()


@torch.no_grad()
def second_softmax(case: Case, logits: Tensor) -> Tensor:
    return logits.detach().float().log_softmax(-1).gather(-1, case.ids)


def rows_of_the_head(case: Case) -> Tensor:
    from cppo_verl.integration.topk.fused import logits_at

    return logits_at(case.hidden, case.head, case.index, 1.0)


# ---- the ways


def whole(case: Case, added: Callable[[Case, Tensor], Tensor] | None = None) -> None:
    """With logits; ``added`` is looked up in them."""
    logits = case.hidden @ case.head.t()
    found = added(case, logits) if added else None
    log_prob = sampled_log_prob(logits, case.labels)
    del logits
    if added is gathered:
        assert found is not None
        found = topk.log_probs_at(found[:, :-1], found[:, -1], log_prob.detach())
    case.finish(log_prob, found)


def fused(case: Case, added: Callable[[Case], Tensor] | None = None) -> None:
    """Without logits: chunks of the head, computed once more in the backward pass."""

    def chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return sampled_log_prob(hidden @ case.head.t(), labels)

    found = added(case) if added else None
    parts = zip(case.hidden.split(CHUNK), case.labels.split(CHUNK), strict=True)
    log_prob = torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])
    case.finish(log_prob, None if found is None else topk.log_probs_at(found[:, :-1], found[:, -1], log_prob.detach()))


WAYS: dict[str, tuple[Callable[[Case], None], str]] = {
    "binary": (whole, "binary"),
    "topk": (partial(whole, added=gathered), "binary"),
    "two softmaxes": (partial(whole, added=second_softmax), "binary"),
    "binary, fused": (fused, "binary, fused"),
    "topk, fused": (partial(fused, added=rows_of_the_head), "binary, fused"),
}


def measure(case: Case, rounds: int, clock: Clock = time.perf_counter) -> list[tuple]:
    """Rows (way, median ms, ratio, peak MB, memory ratio, added MB)."""
    device = case.hidden.device
    took = medians({name: partial(way, case) for name, (way, _) in WAYS.items()}, device, rounds, 1, clock)
    peak = {name: peak_bytes(partial(way, case), device) for name, (way, _) in WAYS.items()}
    logits = (case.hidden @ case.head.t()).detach()
    added = dict.fromkeys(WAYS, 0.0) | {
        "topk": peak_bytes(lambda: gathered(case, logits), device),
        "two softmaxes": peak_bytes(lambda: second_softmax(case, logits), device),
        "topk, fused": peak_bytes(lambda: rows_of_the_head(case), device),
    }
    return [
        (n, 1e3 * took[n], took[n] / took[of], peak[n] / 1e6, peak[n] / peak[of], added[n] / 1e6)
        for n, (_, of) in WAYS.items()
    ]
