"""Run a grid and write its table, the CSVs of claims and rules, and figures.

python -m benchmarks.pocket            # the whole grid; continues where it was interrupted
python -m benchmarks.pocket --quick    # a smoke test of a minute
python -m benchmarks.pocket --try my_rules/trust_region/mine.yaml    # a preset of your own beside CPPO and DPPO
python -m benchmarks.pocket --grid beyond  # the second grid: restoring gates, forward trace, GBPO
python -m benchmarks.pocket --grid staleness  # the third: anchors and steered thresholds, 0 to 8 versions behind
"""

import argparse
from pathlib import Path

import pandas

from benchmarks.pocket.grid import GRID, execute, load, trial

GRIDS = ("grid", "beyond", "staleness")
RESULTS = Path(__file__).with_name("results")
TABLES = Path(__file__).parents[2] / "docs/evidence"

TRIED = {  # what --try prints
    "claims": "claim verdict metric effect low high n",
    "contrasts": "setting a b effect low high n wins",
    "rules": "setting rule n masked_share best best_half final final_half kept tv_last",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pocket", description=__doc__.splitlines()[0])
    parser.add_argument("--grid", choices=GRIDS, default="grid", help="which file of this folder")
    parser.add_argument("--quick", action="store_true", help="toy sizes; nothing to conclude from")
    tried = {"dest": "tried", "action": "append", "default": [], "metavar": "PRESET"}
    parser.add_argument("--try", **tried, help="by name or file, beside CPPO and DPPO; may be repeated")
    parser.add_argument("--seeds", type=int, default=8, help="of --try (%(default)s)")
    parser.add_argument("--out", type=Path, help="default: the grid's results here, runs/pocket-quick or -try")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--report-only", action="store_true", help="figures and tables from the runs that are there")
    args = parser.parse_args()
    grid = load(args.quick, GRID.with_name(f"{args.grid}.yaml"))
    out = args.out or (RESULTS / args.grid if not args.quick else Path("runs/pocket-quick"))
    if args.tried:
        out = args.out or Path("runs/pocket-try")
        try:
            grid = trial(grid, args.tried, args.seeds)
        except ValueError as error:
            parser.error(str(error))
    if not args.report_only:
        execute(grid, out, args.processes)
    from benchmarks.pocket.report import report

    committed = out == RESULTS / args.grid
    report(grid, out, TABLES if committed else out, f"{args.grid}_" if committed else "")
    if args.tried:
        for name, columns in TRIED.items():
            table = pandas.read_csv(out / f"{name}.csv")[columns.split()]
            print(table.to_string(index=False, float_format="{:.3f}".format), end="\n\n")


if __name__ == "__main__":
    main()
