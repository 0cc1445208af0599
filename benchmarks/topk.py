"""What the top-K estimator adds to an actor update: forward + backward of an LM head and its log-probs, five ways.

    python -m benchmarks.topk                     # CUDA where there is one (full size), else the CPU, scaled down
    python -m benchmarks.topk --hidden 2048 4096 --tokens 8192 16384 32768

``binary`` computes the sampled token's log-prob; ``topk`` also gathers K + 1 logits and takes the normaliser from it,
as the package does; ``two softmaxes`` computes log-softmax once more for the K log-probs, as DPPO's fork of verl does.
``fused`` ways have no logits: chunks of the LM head with a recomputing backward, and K + 1 of its rows. All take turns
on the same tensors. Printed: median time and its ratio to binary, the step's peak memory beyond its inputs and its
ratio, and the peak of what the way adds to the forward.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cppo_verl.integration.topk.fused import logits_at
from cppo_verl.selftest.measure import medians, peak_bytes
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
        return cls(
            hidden=torch.randn(tokens, size, **random).to(dtype).requires_grad_(),
            head=(torch.randn(vocabulary, size, **random) * size**-0.5).to(dtype).requires_grad_(),
            labels=torch.randint(0, vocabulary, (tokens,), **random),
            ids=torch.randint(0, vocabulary, (tokens, k), **random),
            log_mu=torch.randn(tokens, k, **random).log_softmax(-1) - 0.1,
            old_log_prob=torch.full((tokens,), -4.0, device=device),
            gradient=torch.randn(tokens, **random),
        )

    @property
    def index(self) -> Tensor:
        """The K listed tokens and the sampled one, (tokens, K + 1)."""
        return torch.cat([self.ids, self.labels.unsqueeze(-1)], -1)

    def finish(self, log_prob: Tensor, log_pi: Tensor | None) -> None:
        """The loss's share: D_t, then the backward pass."""
        now = log_prob.detach()
        if log_pi is None:
            divergence = (now.exp() - self.old_log_prob.exp()).abs()
        else:
            divergence = topk.topk_tv(log_pi, self.log_mu, now, self.old_log_prob)
        torch.autograd.backward([log_prob], [(self.gradient * (divergence <= 0.15)).to(log_prob.dtype)])
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
    return logits_at(case.hidden, case.head, case.index, 1.0)


# ---- the ways


def whole(case: Case, added: Callable[[Case, Tensor], Tensor] | None = None) -> None:
    """With logits; ``added`` is looked up in them."""
    logits = case.hidden @ case.head.t()
    found: Any = added(case, logits) if added else None
    log_prob = sampled_log_prob(logits, case.labels)
    del logits
    if added is gathered:
        found = topk.log_probs_at(found[:, :-1], found[:, -1], log_prob.detach())
    case.finish(log_prob, found)


def fused(case: Case, with_topk: bool = False) -> None:
    """Without logits: chunks of the head, computed once more in the backward pass."""

    def chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return sampled_log_prob(hidden @ case.head.t(), labels)

    found = rows_of_the_head(case) if with_topk else None
    parts = zip(case.hidden.split(CHUNK), case.labels.split(CHUNK), strict=True)
    log_prob = torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])
    case.finish(log_prob, None if found is None else topk.log_probs_at(found[:, :-1], found[:, -1], log_prob.detach()))


WAYS: dict[str, tuple[Callable[[Case], None], str]] = {
    "binary": (whole, "binary"),
    "topk": (partial(whole, added=gathered), "binary"),
    "two softmaxes": (partial(whole, added=second_softmax), "binary"),
    "binary, fused": (fused, "binary, fused"),
    "topk, fused": (partial(fused, with_topk=True), "binary, fused"),
}


def measure(case: Case, rounds: int) -> Iterator[str]:
    """A line a way."""
    device = case.hidden.device
    took = medians({name: partial(way, case) for name, (way, _) in WAYS.items()}, device, rounds)
    peak = {name: peak_bytes(partial(way, case), device) for name, (way, _) in WAYS.items()}
    logits = (case.hidden @ case.head.t()).detach()
    added = {
        "topk": peak_bytes(lambda: gathered(case, logits), device),
        "two softmaxes": peak_bytes(lambda: second_softmax(case, logits), device),
        "topk, fused": peak_bytes(lambda: rows_of_the_head(case), device),
    }
    yield f"  {'way':<16}{'median ms':>11}{'x binary':>10}{'peak MB':>11}{'x binary':>10}{'added MB':>10}"
    for name, (_, of) in WAYS.items():
        time = f"{1e3 * took[name]:>11.2f}{took[name] / took[of]:>10.3f}"
        memory = f"{peak[name] / 1e6:>11.1f}{peak[name] / peak[of]:>10.3f}{added.get(name, 0) / 1e6:>10.2f}"
        yield f"  {name:<16}{time}{memory}"


def main() -> None:
    """Print a table, one row a way and shape."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 4096] if cuda else [256])
    parser.add_argument("--vocabulary", type=int, default=151_936 if cuda else 18_992)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16_384] if cuda else [1024])
    parser.add_argument("--topk", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15 if cuda else 7)
    args = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {args.rounds} rounds, {dtype}")
    for size in args.hidden:
        for tokens in args.tokens:
            print(f"\nhidden {size}, vocabulary {args.vocabulary}, {tokens} tokens, K={args.topk}")
            case = Case.make(tokens, size, args.vocabulary, args.topk, device, dtype)
            print(*measure(case, args.rounds), sep="\n", flush=True)
            del case


if __name__ == "__main__":
    main()
