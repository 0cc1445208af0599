"""A page of the recorded responses, token by token.

Of a run with records (trainer.v1.trust_region.record=N): one self-contained page with the text of every recorded
response, each token shaded by its divergence, masked ones marked by cause, and the spending against its allowance.
"""

import argparse
from pathlib import Path

from cppo_verl.cli.report import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_dir", metavar="RUN", type=Path, help="run directory that holds records/")
    add("--out", type=Path, metavar="FILE", help="where to write (default: RUN/report/inspect.html)")
    add("--steps", metavar="FIRST:LAST[:EVERY]", help="the recorded steps to show, or one (default: as many as fit)")
    add("--title", help="what to call the page (default: the run's name)")


def run(args: argparse.Namespace) -> int:
    """Write the page and tell where; 0 when it is written."""
    from cppo_verl.inspection.page import write_page  # torch: only when a page is asked for
    from cppo_verl.reporting.page import INSPECTOR

    out = args.out or args.run_dir / "report" / INSPECTOR
    index = write_page(args.run_dir, out, args.steps, args.title)
    tell(index.summary(out), out, notes=index.notes)
    return 0
