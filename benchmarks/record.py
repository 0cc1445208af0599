"""What recording costs a run, by its own logs: python -m benchmarks.record --run RUN [RUN ...]

Printed are medians over the recorded steps: the trainer's part (``timing_s/record``), its share of the step, and the
size of a record.
"""

import argparse
import statistics
from pathlib import Path

from cppo_verl import jsonlines
from cppo_verl.recording import files


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__.partition(":")[0])
    parser.add_argument("--run", type=Path, nargs="+", required=True)
    for run in parser.parse_args().run:
        found = [
            record["data"] for path in (run / "logs").glob("metrics-*.jsonl") for record in jsonlines.read(path)[0]
        ]
        pairs = [(data["timing_s/record"], data["timing_s/step"]) for data in found if "timing_s/record" in data]
        milliseconds = 1000 * statistics.median(record for record, _ in pairs)
        share = statistics.median(record / step for record, step in pairs)
        size = statistics.median(path.stat().st_size for path in files.steps(run).values()) / 1024
        print(
            f"{run.name}: {milliseconds:.1f} ms a step, {share:.2%} of it ({len(pairs)} steps); {size:.1f} KiB a step"
        )


if __name__ == "__main__":
    main()
