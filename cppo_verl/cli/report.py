"""``cppo-verl report RUN_DIR``: what verl's file logger wrote, as a page, a picture and a table."""

import argparse
import sys
from pathlib import Path


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Add ``report`` to the subparsers of ``cppo-verl``."""
    parser = subparsers.add_parser(
        "report",
        help="a page, a picture and a table of a run's log",
        description="Merge the logs of a run and write report.html (one self-contained page), report.png, report.md "
        "and metrics.csv.",
    )
    parser.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        type=Path,
        help="directory with logs/*.jsonl, directory with *.jsonl, or one .jsonl file of verl's file logger",
    )
    parser.add_argument(
        "--out", type=Path, help="where to write (default: RUN_DIR/report; for a file, <its name>-report beside it)"
    )
    parser.add_argument("--title", help="what to call the run (default: the name of the directory or file)")
    parser.add_argument(
        "--skip-bad-lines", action="store_true", help="leave damaged lines out, and count them, instead of stopping"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the report; 0 when it is written, 1 with a sentence on stderr when it cannot be."""
    from cppo_verl.reporting.logs import LogError, read_run  # matplotlib and pandas: only when a report is asked for
    from cppo_verl.reporting.page import write_report
    from cppo_verl.reporting.summary import headline

    try:
        found = read_run(args.run_dir, args.skip_bad_lines)
        paths = write_report(found, args.out or default_out(args.run_dir), args.title)
    except (LogError, OSError) as error:
        print(f"cppo-verl report: {error}", file=sys.stderr)
        return 1
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(headline(found).sentence())
    print("\n".join(str(path) for path in paths))
    return 0


def default_out(place: Path) -> Path:
    """``report`` inside a directory; beside a file, a directory of the file's own, for there may be several."""
    place = place.resolve()
    return place.with_name(f"{place.stem}-report") if place.is_file() else place / "report"
