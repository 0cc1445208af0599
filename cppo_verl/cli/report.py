"""Pages, pictures and tables of runs' logs.

Of one run: report.html (one self-contained page), report.png, report.md and metrics.csv; with records also
inspect.html, as cppo-verl inspect writes it. Of several runs, or of a directory that holds runs: methods by seeds with
intervals and paired differences (CSV, Markdown), learning curves (PNG, PDF), runs.csv, and report.html that shows them
all. Where one of the paper's models is among them: its Tables 1 and 4 with ours beside its numbers (CSV, LaTeX), and
its figures.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from cppo_verl.atomic import writable
from cppo_verl.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="run directory, directory of runs, or a file logger's .jsonl")
    add("--out", type=Path, help="default: RUN/report; <name>-report beside a file; ./cppo-report for several")
    add("--title", help="what to call the report (default: the run's name)")
    words = "what a run is, where its config.yaml does not say so; may be repeated"
    add("--label", metavar="PATH=MODEL/METHOD[/SEED]", action="append", default=[], help=words)
    add("--baseline", metavar="METHOD", help="what others are compared with, seed by seed (default: the first method)")
    add("--tables", action="store_true", help="tables and figures for a single run, too")
    add("--skip-bad-lines", action="store_true", help="leave damaged lines out, and count them, instead of stopping")


def run(args: argparse.Namespace) -> int:
    """Write the report and tell where; 0 when it is written."""
    from cppo_verl.reporting.study import expand  # matplotlib and pandas: only when a report is asked for

    one = len(args.runs) == 1 and expand(args.runs[0]) == args.runs
    if one and not (args.tables or args.label or args.baseline):
        _one(args.runs[0], args)
    else:
        _many(args)
    return 0


def tell(*lines: object, notes: Iterable[object] = ()) -> None:
    """Print lines, and notes to stderr; of a path that is no text, what cannot be written is a question mark."""
    for note in notes:
        print(writable(f"note: {note}"), file=sys.stderr)
    for line in lines:
        print(writable(str(line)))


def default_out(place: Path) -> Path:
    """``report`` inside a directory; beside a file, a directory of the file's own, for there may be several."""
    place = place.resolve()
    return place.with_name(f"{place.stem}-report") if place.is_file() else place / "report"


def _one(run_dir: Path, args: argparse.Namespace) -> None:
    from cppo_verl.reporting.logs import read_run
    from cppo_verl.reporting.page import write_report
    from cppo_verl.reporting.summary import headline

    found, out = read_run(run_dir, args.skip_bad_lines), args.out or default_out(run_dir)
    paths = write_report(found, out, args.title, _inspector(run_dir, out, args.title))
    tell(headline(found).sentence(), *paths, notes=found.notes)


def _inspector(run_dir: Path, out: Path, title: str | None) -> str:
    """Writes the page of single tokens beside the report; what it shows, empty without records that can be read."""
    from cppo_verl.reporting.page import INSPECTOR

    if not (run_dir / "records").is_dir():
        return ""
    try:
        from cppo_verl.inspection.page import write_page

        index = write_page(run_dir, out / INSPECTOR, title=title)
    except (ImportError, UserError) as error:  # logs copied to a machine without torch; records that cannot be read
        tell(notes=[f"no page of single tokens. {error}"])
        return ""
    tell(out / INSPECTOR, notes=index.notes)
    return index.summary(out / INSPECTOR)


def _many(args: argparse.Namespace) -> None:
    from cppo_verl.reporting.labels import parse_label
    from cppo_verl.reporting.many import comparisons, summaries, write_many
    from cppo_verl.reporting.study import read_study

    study = read_study(args.runs, dict(map(parse_label, args.label)), args.skip_bad_lines)
    out = args.out or (default_out(args.runs[0]) if len(args.runs) == 1 else Path("cppo-report"))
    compared = comparisons(study, args.baseline)
    paths = write_many(study, compared, out, args.title)
    remarks = [f"{entry.place}: {'; '.join([str(entry.label), *entry.remarks()])}" for entry in study.entries]
    tell(*summaries(study, compared), *paths, notes=[*study.notes, *remarks])
