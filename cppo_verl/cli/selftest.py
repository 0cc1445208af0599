"""``cppo-verl selftest``: acceptance of this machine, stage by stage, with a page for a bug report."""

import argparse
import sys
from pathlib import Path


def add_parser(subparsers) -> None:
    """Add ``selftest`` to the command line."""
    parser = subparsers.add_parser(
        "selftest",
        help="acceptance of this machine: rules, losses, speed, the whole stack, a recipe's step",
        description="Runs stages that measure, and writes selftest.html, selftest.md and selftest.json: predicted, "
        "measured, limit, verdict. Stopped, the same command goes on at the unfinished stage; what failed is tried "
        "again. With VERL_PLATFORM=cpu everything runs in miniature.",
    )
    parser.add_argument("--out", type=Path, default=Path("cppo-selftest"), help="where to write (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--list", action="store_true", help="say what the stages need and take, and run nothing")
    parser.add_argument("--stages", metavar="A,B", help="only these (default: all)")
    parser.add_argument("--steps", type=int, default=4, help="training steps of a run of the tiny model (%(default)s)")
    parser.add_argument("--recipe", metavar="NAME", default="", help="one step of run_scripts/NAME.sh at full lengths")
    parser.add_argument("--model", metavar="PATH", default="", help="the recipe's model, a folder or a hub id")
    parser.add_argument("--strict", action="store_true", help="a stage that is not run here counts as failed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 if every stage that can run here holds, 1 if one fails, 2 for a wrong command line."""
    from cppo_verl.launch import supervise
    from cppo_verl.selftest import machine, recipe_step, report, session
    from cppo_verl.selftest.setting import Setting, StageError
    from cppo_verl.selftest.table import FAILS, NOT_RUN

    out = args.out.resolve()
    try:
        wanted = chosen(args)
        here = machine.look(out)
        overrides = recipe_step.overrides(args.recipe, args.model, here) if args.recipe else ()
        device = here.device or "cpu"
        setting = Setting(out, device, here.ranks, here.gpu_gb, args.steps, args.recipe, args.model, overrides)
        if args.list:
            print("\n".join(listing(wanted, here, setting)))
            return 0
        if args.fresh:
            session.clear(out)
        supervise.raise_on_terminate()
        results = session.run(setting, here, wanted, say, lambda found: report.write(out, here, found))
    except (session.SelftestError, StageError) as error:
        print(f"cppo-verl selftest: {error}", file=sys.stderr)
        return 2
    except (supervise.AlreadyRunning, OSError) as error:
        print(f"cppo-verl selftest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on at the unfinished stage", file=sys.stderr)
        return 130
    print(report.sentence(results))
    print(out / report.PAGE)
    bad = (FAILS, NOT_RUN) if args.strict else (FAILS,)
    return 1 if any(result.verdict in bad for result in results) else 0


def chosen(args: argparse.Namespace) -> list:
    """The stages asked for, in their own order.

    Raises:
        SelftestError: for a name that is none.
    """
    from cppo_verl.selftest.session import SelftestError
    from cppo_verl.selftest.stages import NAMES, STAGES

    if args.steps < 3:
        raise SelftestError(f"--steps {args.steps}: a run is killed after its second step and resumed; give 3 or more")
    if bool(args.model) and not args.recipe:
        raise SelftestError("--model without --recipe: the model is the recipe's; name one of run_scripts/*.sh")
    if args.stages is None:
        return [stage for stage in STAGES if stage.name != "recipe" or args.recipe]
    names = args.stages.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise SelftestError(f"--stages {','.join(unknown)}: no such stage; there are {', '.join(NAMES)}")
    return [stage for stage in STAGES if stage.name in names]


def listing(wanted, here, setting) -> list[str]:
    """What the stages need and take on this machine, a line each."""
    from cppo_verl.selftest import session
    from cppo_verl.selftest.table import HOLDS, Result

    lines, on_cpu = [], here.device != "cuda"
    for stage in wanted:
        found = session.kept(stage, here, setting)
        reason = stage.unmet(here, setting, {name: Result(name, HOLDS) for name in stage.needs.after})
        seconds = stage.seconds["cpu" if on_cpu else "cuda"]
        state = "done" if found else f"about {seconds:.0f} s"
        lines.append(f"{stage.name:12} {state:>12}  {stage.title}")
        lines.append(f"{'':26}needs {stage.needs.said(on_cpu)}" + (f"; not here: {reason}" if reason else ""))
    return lines


def say(line: str) -> None:
    """A line for a reader, at once."""
    print(line, flush=True)
