"""``cppo-verl inspect RUN``: what the trust region did to single tokens, as one page."""

import argparse
import sys
from pathlib import Path


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
    parser.add_argument(
        "--steps",
        metavar="FIRST:LAST[:EVERY]",
        help="the recorded steps to show, or one step (default: as many as fit)",
    )
    parser.add_argument("--title", help="what to call the page (default: the run's name)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page; 0 when it is written, 1 with a sentence on stderr when it cannot be."""
    from cppo_verl.inspection.page import summary, write_page  # torch: only when a page is asked for
    from cppo_verl.recording.files import steps as recorded
    from cppo_verl.recording.record import RecordError
    from cppo_verl.reporting.page import INSPECTOR

    out = args.out or args.run_dir / "report" / INSPECTOR
    try:
        steps = None if args.steps is None else chosen_steps(args.steps, list(recorded(args.run_dir)))
        index = write_page(args.run_dir, out, steps, args.title)
    except (RecordError, OSError) as error:
        print(f"cppo-verl inspect: {error}", file=sys.stderr)
        return 1
    for note in index.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{summary(index, out)}\n{out}")
    return 0


def chosen_steps(text: str, recorded: list[int]) -> list[int]:
    """``12``, ``5:20``, ``5:`` or ``5:60:3`` (every third recorded one) as the recorded steps that it means.

    Raises:
        RecordError: another form, or none of these steps is recorded.
    """
    from cppo_verl.recording.record import RecordError

    try:
        parts = [int(part) if part else None for part in text.split(":")]
        if len(parts) > 3 or (len(parts) == 3 and (parts[2] or 0) < 1) or not text.strip(":"):
            raise ValueError
    except ValueError:
        raise RecordError(f"--steps {text}: not FIRST:LAST[:EVERY] in whole numbers, as in 10:60:3 or 12.") from None
    first, last, every = (parts + [None, None])[:3] if len(parts) > 1 else (parts[0], parts[0], None)
    found = [s for s in recorded if (first is None or s >= first) and (last is None or s <= last)][:: every or 1]
    if not found:
        span = f"they are {recorded[0]} to {recorded[-1]}" if recorded else "there is none"
        raise RecordError(f"--steps {text}: no recorded step is among them; {span}.")
    return found
