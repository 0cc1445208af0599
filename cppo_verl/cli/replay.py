"""What other rules would have masked on a run's recorded tokens.

Run rules over the tokens that a run recorded (trainer.v1.trust_region.record), exactly as the training would have:
masked share in all, by position, sign and cause, and how far any two rules agree. Without --preset and --rule: the rule
that ran, and every preset. Writes replay.html, replay.md, replay.csv and replay-overlap.csv.
"""

import argparse
from pathlib import Path

from cppo_verl.cli.report import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_record_arguments(parser)
    add = parser.add_argument
    add("--preset", nargs="+", action="extend", default=[], metavar="NAME", help="only these presets")
    add("--out", type=Path, help="where to write (default: RUN/report)")


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, which steps, and rules of one's own."""
    add = parser.add_argument
    add("run_dir", metavar="RUN", type=Path, help="run directory, with records/ in it")
    add("--steps", metavar="A-B", help="only these recorded steps (default: all)")
    add("--rule", action=_Rule, default=[], metavar="NAME", help="a loss_mode under the run's knobs; may be repeated")
    add("--set", action=_Set, nargs="+", metavar="KEY=VALUE", help="knobs of the --rule before it, such as delta=0.2")


class _Rule(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        namespace.rule = [*namespace.rule, (values, [])]


class _Set(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if not namespace.rule:
            parser.error("--set changes the knobs of a --rule: name the rule before it")
        namespace.rule[-1][1].extend(values)


def run(args: argparse.Namespace) -> int:
    """Print the table and write the files. RecordError: there is nothing to replay, or a rule that cannot be."""
    from cppo_verl.recording.batches import select  # torch and pyarrow: only when a replay is asked for
    from cppo_verl.recording.replay import replayed
    from cppo_verl.reporting import replay

    selection = select(args.run_dir, args.steps)
    result, notes = replayed(selection, args.preset, args.rule)
    told = replay.Told(result, args.run_dir.resolve().name, selection.scope, [*selection.notes, *notes])
    paths = replay.write(told, args.out or args.run_dir / "report")
    tell(replay.text(told), *paths, notes=told.notes)
    return 0
