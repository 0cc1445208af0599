"""Forward + backward of every registered policy loss beside verl's own, on the same tensors, in one run.

    python -m benchmarks.loss                          # 32 x 8192, CPU, or CUDA where there is one
    python -m benchmarks.loss --batches 1 8 64 --lengths 1024 8192 32768

The losses take turns in every round, so that a drifting machine hits all alike; printed are medians, the ratio of
medians to verl's dppo_tv, and the peak memory a call adds, in float32 tensors of the input's shape.
"""

import argparse
import os

import torch

from cppo_verl.selftest.measure import REFERENCE, of_losses, registered_losses


def main() -> None:
    """Print a table, one row a loss and shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="names of losses to measure beside the reference")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    losses = {k: v for k, v in registered_losses().items() if not args.only or k in args.only or k == REFERENCE}
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.rounds} rounds, float32")
    print(f"{'batch x length':>14}  {'loss':<28}{'median ms':>10}{'x dppo_tv':>11}{'extra tensors':>15}")
    for batch in args.batches:
        for length in args.lengths:
            found = of_losses(losses, batch, length, args.rounds, torch.device(args.device))
            for name, (milliseconds, ratio, extra) in found.items():
                measured = f"{name:<28}{milliseconds:>10.2f}{ratio:>11.2f}{extra:>15.1f}"
                print(f"{batch:>6} x {length:<5}  {measured}", flush=True)


if __name__ == "__main__":
    main()
