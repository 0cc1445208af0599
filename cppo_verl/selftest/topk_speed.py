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
        generator = torch.Generator(device).manual_seed(0)
        random: dict[str, Any] = {"generator": generator, "device": device}
        hidden = torch.randn(tokens, size, **random).to(dtype)
        head = (torch.randn(vocabulary, size, **random) * size**-0.5).to(dtype)
        labels = torch.randint(0, vocabulary, (tokens,), **random)
        ids = torch.randint(0, vocabulary, (tokens, k), **random)
        log_mu = torch.randn(tokens, k, **random).log_softmax(-1) - 0.1
        old_log_prob = torch.full((tokens,), -4.0, device=device)
        gradient = torch.randn(tokens, **random)
        return cls(hidden.requires_grad_(), head.requires_grad_(), labels, ids, log_mu, old_log_prob, gradient)

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


def gathered(case: Case, logits: Tensor) -> Tensor:
    """What ``topk`` adds to the forward: K + 1 logits a token."""
    with torch.no_grad():
        return logits.detach().gather(-1, torch.cat([case.ids, case.labels.unsqueeze(-1)], -1)).float()


def second_softmax(case: Case, logits: Tensor) -> Tensor:
    """What ``two softmaxes`` adds."""
    with torch.no_grad():
        return logits.detach().float().log_softmax(-1).gather(-1, case.ids)


def rows_of_the_head(case: Case) -> Tensor:
    """What ``topk, fused`` adds."""
    from cppo_verl.integration.topk.fused import logits_at

    return logits_at(case.hidden, case.head, torch.cat([case.ids, case.labels.unsqueeze(-1)], -1), 1.0)


def binary(case: Case) -> None:
    logits = case.hidden @ case.head.t()
    log_prob = sampled_log_prob(logits, case.labels)
    del logits
    case.finish(log_prob, None)


def with_topk(case: Case) -> None:
    logits = case.hidden @ case.head.t()
    chosen = gathered(case, logits)
    log_prob = sampled_log_prob(logits, case.labels)
    del logits
    case.finish(log_prob, topk.log_probs_at(chosen[:, :-1], chosen[:, -1], log_prob.detach()))


def two_softmaxes(case: Case) -> None:
    logits = case.hidden @ case.head.t()
    log_pi = second_softmax(case, logits)
    log_prob = sampled_log_prob(logits, case.labels)
    del logits
    case.finish(log_prob, log_pi)


def _chunk_log_prob(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return sampled_log_prob(hidden @ head.t(), labels)


def _fused_log_prob(case: Case) -> Tensor:
    parts = zip(case.hidden.split(CHUNK), case.labels.split(CHUNK), strict=True)
    return torch.cat(
        [
            torch.utils.checkpoint.checkpoint(_chunk_log_prob, hidden, case.head, labels, use_reentrant=False)
            for hidden, labels in parts
        ]
    )


def fused_binary(case: Case) -> None:
    case.finish(_fused_log_prob(case), None)


def fused_topk(case: Case) -> None:
    chosen = rows_of_the_head(case)
    log_prob = _fused_log_prob(case)
    case.finish(log_prob, topk.log_probs_at(chosen[:, :-1], chosen[:, -1], log_prob.detach()))


WAYS: dict[str, tuple[Callable[[Case], None], str]] = {
    "binary": (binary, "binary"),
    "topk": (with_topk, "binary"),
    "two softmaxes": (two_softmaxes, "binary"),
    "binary, fused": (fused_binary, "binary, fused"),
    "topk, fused": (fused_topk, "binary, fused"),
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
        (
            name,
            1e3 * took[name],
            took[name] / took[of],
            peak[name] / 1e6,
            peak[name] / peak[of],
            added[name] / 1e6,
        )
        for name, (_, of) in WAYS.items()
    ]
