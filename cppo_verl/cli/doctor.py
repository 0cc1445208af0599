"""``cppo-verl doctor [--model M] [--recipe R]``: would a run start on this machine, and if not, why."""

import argparse

from cppo_verl.doctor.examine import examine
from cppo_verl.doctor.inputs import ask
from cppo_verl.doctor.verdicts import FAIL


def add_parser(subparsers) -> None:
    """Add ``doctor`` to the command line."""
    words = "check packages, GPUs, disk, model and recipe: would a run start here"
    parser = subparsers.add_parser("doctor", help=words)
    parser.add_argument("--model", help="a folder or hub id that the run would start from")
    parser.add_argument("--recipe", help="a script of run_scripts/ by name or path; METHOD=, SP=, ... as for it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line a check; 0 unless one of them says that a run would not start."""
    verdicts = []
    for finding in examine(ask(args.model, args.recipe)):
        text = finding.text.replace("\n", "\n      ")
        print(f"{finding.verdict:>4}  {finding.title}: {text}", flush=True)
        verdicts.append(finding.verdict)
    failed = verdicts.count(FAIL)
    print(f"{failed} of {len(verdicts)} checks failed: a run would not start." if failed else "A run would start here.")
    return 1 if failed else 0
