"""Check packages, GPUs, disk, model and recipe: would a run start here."""

import argparse

from cppo_verl.doctor.examine import examine
from cppo_verl.doctor.inputs import ask
from cppo_verl.doctor.verdicts import FAIL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a folder or hub id that the run would start from")
    parser.add_argument("--recipe", help="a script of run_scripts/ by name or path; METHOD=, SP=, ... as for it")


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
