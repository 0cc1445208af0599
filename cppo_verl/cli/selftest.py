"""Acceptance of this machine: rules, losses, speed, the whole stack.

Runs stages that measure, and writes selftest.html, selftest.md and selftest.json: predicted, measured, limit, verdict.
With VERL_PLATFORM=cpu everything runs in miniature.
"""

import argparse
import functools
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("cppo-selftest"), help="where to write (%(default)s)")
    add("--list", action="store_true", help="say what the stages need and take, and run nothing")
    add("--stages", metavar="A,B", help="only these, and what they come after (default: all)")
    add("--steps", type=int, default=4, help="training steps of a run of the tiny model (%(default)s)")
    add("--strict", action="store_true", help="a stage that is not run here counts as failed")


def run(args: argparse.Namespace) -> int:
    """0 if every stage that can run here holds, 1 if one fails, 2 for a wrong command line."""
    from cppo_verl.launch import supervise
    from cppo_verl.selftest import report, session
    from cppo_verl.selftest.stage import FAILS, NOT_RUN

    wanted = session.chosen(args.stages)
    setting, facts = session.here(args.out.resolve(), args.steps)
    if args.list:
        print("\n".join(session.listing(wanted, setting)))
        return 0
    supervise.raise_on_terminate()
    write = functools.partial(report.write, setting.out, setting.device, facts)
    results = session.run(setting, wanted, functools.partial(print, flush=True), write)
    print(report.sentence(results), setting.out / report.PAGE, sep="\n")
    bad = (FAILS, NOT_RUN) if args.strict else (FAILS,)
    return 1 if any(result.verdict in bad for result in results) else 0
