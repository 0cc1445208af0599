"""Thresholds that mask a wanted share of a run's recorded tokens.

Find the thresholds of a rule (the run's own, or --preset, or --rule and --set) on the tokens that a run recorded, with
95% intervals from a bootstrap over groups of responses, as overrides to paste. A rule with two thresholds keeps their
ratio: both are multiplied by one factor; --hold keeps one as it is.
"""

import argparse

from cppo_verl.cli.replay import add_record_arguments
from cppo_verl.cli.report import tell

MASKS_CHANGE_DATA = (
    "Masks change the data that follow: under these thresholds the policy moves otherwise and samples other tokens. "
    "Run with them, record, and calibrate again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_record_arguments(parser)
    add, goal = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    add("--preset", metavar="NAME", help="the thresholds of a preset instead of the run's rule")
    goal.add_argument("--masked-share", type=_share, metavar="P", help="of the tokens, 0.01 for one in a hundred")
    goal.add_argument("--above-gap", type=_positive, metavar="K", help="K times the divergence at a first update")
    add("--hold", nargs="+", default=[], metavar="KNOB", help="thresholds that stay as they are")
    add("--move", nargs="+", default=[], metavar="KNOB", help="knobs to move instead of delta and delta_b (own rules)")
    add("--seed", type=_natural, default=0, help="of the bootstrap (%(default)s)")


def _share(text: str) -> float:
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1; write 1% as 0.01")
    return float(text)


def _natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return int(text)


def _positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def run(args: argparse.Namespace) -> int:
    """Print thresholds and overrides. RecordError: there cannot be any; says why."""
    from cppo_verl.recording import calibrate, candidates  # torch and pyarrow: only when a calibration is asked for
    from cppo_verl.recording.batches import select
    from cppo_verl.recording.record import RecordError

    selection = select(args.run_dir, args.steps)
    if len(args.rule) + bool(args.preset) > 1:
        raise RecordError("one rule at a time: give one --rule, or one --preset.")
    if args.preset:
        candidate = candidates.of_preset(args.preset, selection.header)
    elif args.rule:
        rule, assignments = args.rule[0]
        candidate = candidates.of_rule(rule, assignments, selection.header)
    else:
        candidate = candidates.recorded(selection.header)
    family = calibrate.family_of(selection.batches, candidate, args.hold, args.move)
    if args.masked_share is not None:
        found = calibrate.for_share(family, args.masked_share, args.seed)
    else:
        found = calibrate.above_gap(family, args.above_gap, args.seed)
    tell(*found.told(selection.scope), "", MASKS_CHANGE_DATA, notes=[*selection.notes, *found.warnings])
    return 0
