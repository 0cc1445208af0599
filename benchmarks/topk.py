"""What the top-K estimator adds to an actor update: forward + backward of an LM head and its log-probs, three ways.

    python -m benchmarks.topk                     # CUDA where there is one (full size), else the CPU, scaled down
    python -m benchmarks.topk --hidden 2048 4096 --tokens 8192 16384 32768 --csv topk.csv

``binary`` computes the sampled token's log-prob; ``topk`` also gathers K + 1 logits and takes the normaliser from it,
as the package does; ``two softmaxes`` computes log-softmax once more for the K log-probs, as DPPO's fork of verl does.
``topk, fused`` has no logits: chunks of the LM head with a recomputing backward, and K + 1 of its rows. They take turns
in every round. Printed: median time and its ratio to binary, the step's peak memory beyond its inputs and its ratio,
the peak of what the way adds to the forward, and what counting bytes and operations predicts for one H200
(785 TFLOP/s in bfloat16, 4.8 TB/s).
"""

import argparse
import csv
import os

import torch

from benchmarks.topk_speed import Case, measure
from cppo_verl.trust_region import topk

FLOPS, BANDWIDTH = 785e12, 4.8e12
HEADER = ("hidden", "vocabulary", "tokens", "way", "median_ms", "ratio", "peak_mb", "memory_ratio", "added_mb")


def prediction(tokens: int, size: int, vocabulary: int, k: int, logit_bytes: int) -> dict[str, float]:
    """Milliseconds and megabytes by counting, on one H200: the LM head, and what each way adds.

    A gather touches a 32-byte sector a logit, writes float32, reads and writes the K-wide tensors of D_t some 12 times.
    Two softmaxes read the logits and write, read and write again their float32 copy.
    """
    head = 6 * tokens * size * vocabulary / FLOPS
    logits = tokens * vocabulary
    small = tokens * (k + 1) * 4 * 12
    return {
        "head_ms": 1e3 * head,
        "topk_ms": 1e3 * (tokens * (k + 1) * 32 + small) / BANDWIDTH,
        "topk_fused_ms": 1e3 * (2 * tokens * (k + 1) * size * 2 + small) / BANDWIDTH,
        "two_softmaxes_ms": 1e3 * logits * (logit_bytes + 3 * 4) / BANDWIDTH,
        "topk_mb": (small / 12 * 4 + tokens * (k + 1) * 8) / 1e6,
        "two_softmaxes_mb": 2 * logits * 4 / 1e6,
    }


def main() -> None:
    """Print a table, one row a way and shape; --csv also writes it."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 4096] if cuda else [256])
    parser.add_argument("--vocabulary", type=int, default=151_936 if cuda else 18_992)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16_384] if cuda else [1024])
    parser.add_argument("--topk", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15 if cuda else 7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--csv", help="file to write the rows to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.rounds} rounds")
    print(f"{dtype}, K={args.topk}")
    rows = []
    for size in args.hidden:
        for tokens in args.tokens:
            case = Case.make(tokens, size, args.vocabulary, args.topk, args.device, dtype)
            print(f"\nhidden {size}, vocabulary {args.vocabulary}, {tokens} tokens")
            print(f"  {'way':<16}{'median ms':>11}{'x binary':>10}{'peak MB':>11}{'x binary':>10}{'added MB':>10}")
            for name, ms, ratio, peak, memory, added in measure(case, args.rounds):
                print(f"  {name:<16}{ms:>11.2f}{ratio:>10.3f}{peak:>11.1f}{memory:>10.3f}{added:>10.2f}", flush=True)
                rows.append((size, args.vocabulary, tokens, name, ms, ratio, peak, memory, added))
            del case
    for size in (2048, 4096):
        show_prediction(8192, size, 151_936, args.topk, 2)
    show_transport(args.topk)
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            writer.writerows(rows)


def show_prediction(tokens: int, size: int, vocabulary: int, k: int, logit_bytes: int) -> None:
    """The counted figures of a shape on one H200."""
    print(
        f"\ncounted for one H200: hidden {size}, vocabulary {vocabulary}, {tokens} tokens, {8 * logit_bytes}-bit logits"
    )
    count = prediction(tokens, size, vocabulary, k, logit_bytes)
    for way in ("topk", "topk_fused", "two_softmaxes"):
        share = 100 * count[f"{way}_ms"] / count["head_ms"]
        print(f"  {way:<17} +{count[f'{way}_ms']:.3f} ms = {share:.2f}% of {count['head_ms']:.1f} ms")
    print(f"  memory: topk {count['topk_mb']:.1f} MB, two softmaxes {count['two_softmaxes_mb']:.0f} MB")


def show_transport(k: int) -> None:
    """Bytes a token from the rollout to the actor, all entries and above two cut-offs, on peaked random policies."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 12, 2000).unsqueeze(-1)
    log_mu = (scale * torch.randn(2000, 4096, generator=generator)).log_softmax(-1)
    sampled = torch.multinomial(log_mu.exp(), 1, generator=generator)
    top = log_mu.topk(k)
    arguments = (top.indices, top.values, sampled.squeeze(-1), log_mu.gather(-1, sampled).squeeze(-1))
    figures = [(cut, topk.pack(*arguments, cutoff=cut).numel() * 2 / 2000) for cut in (0.0, 1e-4, 1e-2)]
    text = ", ".join(f"{bytes_:.0f} B at cut-off {cut:g}" for cut, bytes_ in figures)
    print(
        f"\ntransport at K={k}: {6 * k + 4} B a token at most; {text}; TV coding error <= {topk.tv_coding_bound(k):.1e}"
    )


if __name__ == "__main__":
    main()
