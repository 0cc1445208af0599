"""``cppo-verl inspect RUN``: what the trust region did to single tokens, as one page."""

import argparse
import sys
from pathlib import Path

from cppo_verl.cli.report import tell


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Add ``inspect`` to the subparsers of ``cppo-verl``."""
    parser = subparsers.add_parser(
        "inspect",
        help="a page of the recorded responses, token by token",
        description="Of a run with records (trainer.v1.trust_region.record=N): one self-contained page with the text "
        "of every recorded response, each token shaded by its divergence, masked ones marked by cause, and the "
        "spending against its allowance.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory that holds records/")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: RUN/report/inspect.html)")
    parser.add_argument("--steps", metavar="FIRST:LAST[:EVERY]", help="the recorded steps to show, or one step "
                        "(default: as many as fit)")  # fmt: skip
    parser.add_argument("--title", help="what to call the page (default: the run's name)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page and tell where; 0 when it is written."""
    from cppo_verl.inspection.page import chosen_steps, summary, write_page  # torch: only when a page is asked for
    from cppo_verl.reporting.page import INSPECTOR

    out = args.out or args.run_dir / "report" / INSPECTOR
    steps = None if args.steps is None else chosen_steps(args.steps, args.run_dir)
    index = write_page(args.run_dir, out, steps, args.title)
    for note in index.notes:
        tell(f"note: {note}", sys.stderr)
    tell(f"{summary(index, out)}\n{out}")
    return 0
