"""The study with a real model: plan, runs and reading are fixed in real_model.yaml.

    python -m benchmarks.real_model plan     # the commands, and how far each run is; starts nothing
    python -m benchmarks.real_model run      # one run after the other; started again, goes on where it was stopped
    python -m benchmarks.real_model read     # what the plan says is read, of the runs that are finished

Runs lie in WORK/study (``--work``), each with its own report; cppo-verl report WORK/study compares them.
"""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cppo_verl.reporting import intervals, logs
from data_prep import validations

ROOT = Path(__file__).parent.parent
PLAN = Path(__file__).with_suffix(".yaml")
MASKED = "actor/trust_region/masked_share"
SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    method: str
    seed: int
    folder: Path

    def environment(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """What the run script is given."""
        own = {"METHOD": self.method, "SEED": self.seed, "RUN": self.folder}
        return {key: str(value) for key, value in {**settings, **own}.items()}

    def step(self) -> int:
        """The last step in its log; 0 before the first."""
        try:
            return int(logs.read_run(self.folder).frame.index.max())
        except logs.LogError:
            return 0


def runs(plan: Mapping[str, Any], work: Path) -> list[Run]:
    """All runs, seed by seed, so that a study that is cut short has whole seeds."""
    pairs = [(method, seed) for seed in plan["seeds"] for method in plan["methods"]]
    pairs += [(method, seed) for method, seeds in plan["besides"].items() for seed in seeds]
    return [Run(method, seed, work / "study" / f"{method}-seed{seed}") for method, seed in pairs]


def show(plan: Mapping[str, Any], work: Path) -> None:
    """Every run's command and how far it is."""
    for run in runs(plan, work):
        values = " ".join(f"{key}={value}" for key, value in run.environment(plan["settings"]).items())
        print(f"{run.step()} of {plan['settings']['STEPS']} steps: {values} bash {plan['command']}")


def start(plan: Mapping[str, Any], work: Path) -> int:
    """Bring every run to its last step; the status of the first that fails, after which no other is started."""
    for run in runs(plan, work):
        if run.step() < plan["settings"]["STEPS"]:
            values = {**os.environ, "WORK": str(work), **run.environment(plan["settings"])}
            done = subprocess.run(["bash", str(ROOT / plan["command"])], env=values)
            if done.returncode:
                return done.returncode
    return 0


def read(plan: Mapping[str, Any], work: Path) -> str:
    """What the plan's ``reading`` asks for, of the runs that are finished."""
    last = plan["settings"]["STEPS"]
    finished = [run for run in runs(plan, work) if run.step() >= last]
    lines = [f"{len(finished)} of {len(runs(plan, work))} runs are finished"]
    ends: dict[str, dict[int, float]] = {}
    for run in finished:
        found = validations.read(run.folder)
        rise, error = validations.gain(found[min(found)], found[max(found)])
        ends.setdefault(run.method, {})[run.seed] = validations.mean_and_error(
            list(validations.accuracies(found[max(found)]).values())
        )[0]
        frame = logs.read_run(run.folder).frame
        share = float((frame[MASKED] > 0).mean()) if MASKED in frame else 0.0
        verdict = "rises" if error and rise / error > SURE else "does not rise"
        lines.append(
            f"{run.method} seed {run.seed}: {rise:+.3f}, standard error {error:.3f}: {verdict} by more than {SURE:.0f} "
            f"of them; masked in {share:.0%} of the steps"
        )
    for one, other in itertools.combinations([method for method in plan["methods"] if method in ends], 2):
        seeds = sorted(ends[one].keys() & ends[other].keys())
        if len(seeds) > 1:
            mean, low, high = intervals.interval([ends[one][seed] - ends[other][seed] for seed in seeds])
            lines.append(f"{one} - {other} at the end: {mean:+.3f}, 95% {low:+.3f} to {high:+.3f}, {len(seeds)} seeds")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("do", choices=("plan", "run", "read"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs", help="where data, model and runs lie (%(default)s)")
    options = parser.parse_args(argv)
    plan, work = yaml.safe_load(PLAN.read_text(encoding="utf-8")), options.work.resolve()
    if options.do == "run":
        sys.exit(start(plan, work))
    if options.do == "plan":
        show(plan, work)
    else:
        print(read(plan, work))


if __name__ == "__main__":
    main()
