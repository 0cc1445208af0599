"""The ``cppo-verl`` command."""

import argparse
import sys

from cppo_verl import __version__
from cppo_verl.cli import calibrate, doctor, eval, inspect, replay, report, run, selftest
from cppo_verl.errors import UserError

GOES_ON = {
    "run": "; the same command resumes from the last checkpoint",
    "eval": "; the same command goes on behind the last saved part",
}


def main(argv: list[str] | None = None) -> int:
    """Parse and dispatch; returns the exit status."""
    parser = argparse.ArgumentParser(prog="cppo-verl", description="Trust regions for verl.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in (run, eval, report, inspect, replay, calibrate, doctor, selftest):
        name, words = command.__name__.rpartition(".")[2], command.__doc__ or ""
        subparser = subparsers.add_parser(name, help=words.partition("\n")[0].rstrip("."), description=words)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args, later = parser.parse_known_args(argv)
    if later and hasattr(args, "overrides") and not any(word.startswith("-") for word in later):
        args.overrides += later  # argparse takes those before the first option only
    elif later:
        parser.error(f"unrecognized arguments: {' '.join(later)}")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print(f"\nstopped{GOES_ON.get(args.command, '')}", file=sys.stderr, flush=True)
        return 130
    except (UserError, OSError) as error:  # a full disk, a folder without write rights: the message names the file
        print(f"cppo-verl {args.command}: {error}", file=sys.stderr, flush=True)
        return getattr(error, "status", 1)


if __name__ == "__main__":
    sys.exit(main())
