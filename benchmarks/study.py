"""A study of whole runs on the real stack: its arms, seeds and reading are fixed in a file of benchmarks/studies.

    python -m benchmarks.study real_model plan     # the commands, and how far each run is; starts nothing
    python -m benchmarks.study real_model run      # one run after the other; goes on where it was stopped
    python -m benchmarks.study real_model read     # what the plan says is read, of the runs that are finished

Runs lie in WORK/study-NAME (``--work``), each with its own report; cppo-verl report on that folder compares them.
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

from cppo_verl import estimates
from cppo_verl.reporting import logs
from cppo_verl.reporting import metrics as names
from data_prep import validations

ROOT = Path(__file__).parent.parent
PLANS = Path(__file__).parent / "studies"
SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Run:
    """One training run: an ``arm`` of the plan with a seed, in a folder of its own."""

    arm: str
    seed: int
    folder: Path
    variables: Mapping[str, Any]  # of the run script's environment
    overrides: Sequence[str]  # for verl

    def environment(self) -> dict[str, str]:
        """What the run script is given."""
        return {key: str(value) for key, value in {**self.variables, "SEED": self.seed, "RUN": self.folder}.items()}

    def step(self) -> int:
        """The last step in its log; 0 before the first."""
        try:
            return int(logs.read_run(self.folder).frame.index.max())
        except logs.LogError:
            return 0

    def finished(self) -> bool:
        return self.step() >= int(self.variables["STEPS"])


def load(name: str) -> dict[str, Any]:
    """The plan of a study; a FileNotFoundError names those there are."""
    path = PLANS / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no study {name!r}: {', '.join(sorted(plan.stem for plan in PLANS.glob('*.yaml')))}")
    plan: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return plan | {"name": name}


def runs(plan: Mapping[str, Any], work: Path) -> list[Run]:
    """All runs, seed by seed, so that a study that is cut short has whole seeds."""
    besides, found = plan.get("besides", {}), []
    pairs = [(arm, seed) for seed in plan["seeds"] for arm in plan["arms"]]
    pairs += [(arm, seed) for arm, values in besides.items() for seed in values["seeds"]]
    for arm, seed in pairs:
        values = {**plan["arms"], **besides}[arm]
        variables = {**plan["settings"], **values["variables"]}
        folder = work / f"study-{plan['name']}" / f"{arm}-seed{seed}"
        found.append(Run(arm, seed, folder, variables, values.get("overrides", ())))
    return found


def show(plan: Mapping[str, Any], work: Path) -> None:
    """Every run's command and how far it is."""
    for run in runs(plan, work):
        values = " ".join(f"{key}={value}" for key, value in run.environment().items())
        command = " ".join([values, "bash", plan["command"], *run.overrides])
        print(f"{run.step()} of {run.variables['STEPS']} steps: {command}")


def start(plan: Mapping[str, Any], work: Path) -> int:
    """Bring every run to its last step; the status of the first that fails, after which no other is started."""
    for run in runs(plan, work):
        if not run.finished():
            values = {**os.environ, "WORK": str(work), **run.environment()}
            done = subprocess.run(["bash", str(ROOT / plan["command"]), *run.overrides], env=values)
            if done.returncode:
                return done.returncode
    return 0


def read(plan: Mapping[str, Any], work: Path) -> str:
    """What the plan's ``reading`` asks for, of the runs that are finished."""
    planned = runs(plan, work)
    finished = [run for run in planned if run.finished()]
    lines = [f"{len(finished)} of {len(planned)} runs are finished"]
    ends: dict[str, dict[int, float]] = {}
    for run in finished:
        found = validations.read(run.folder)
        first, last = found[min(found)], found[max(found)]
        rise, error = validations.gain(first, last)
        before, after = (validations.accuracies(responses).mean() for responses in (first, last))
        ends.setdefault(run.arm, {})[run.seed] = after
        verdict = "rises" if error and rise / error > SURE else "does not rise"
        lines.append(
            f"{run.arm} seed {run.seed}: {before:.3f} to {after:.3f}, {rise:+.3f}, standard error {error:.3f}: "
            f"{verdict} by more than {SURE:.0f} of them; {_course(run)}"
        )
    for one, other in plan.get("pairs") or itertools.combinations([arm for arm in plan["arms"] if arm in ends], 2):
        seeds = sorted(ends.get(one, {}).keys() & ends.get(other, {}).keys())
        if len(seeds) > 1:
            mean, low, high = estimates.interval([ends[one][seed] - ends[other][seed] for seed in seeds])
            lines.append(f"{one} - {other} at the end: {mean:+.3f}, 95% {low:+.3f} to {high:+.3f}, {len(seeds)} seeds")
    return "\n".join(lines)


def _course(run: Run) -> str:
    """How a run went on its way: masking, divergence, age of its data, time."""
    frame = logs.read_run(run.folder).frame
    logged = {name: frame[name].dropna() for name in frame}  # the validation before the first step logs no training
    said = ["no masked share in its log"]
    if names.MASKED in logged:
        masked = logged[names.MASKED]
        said = [f"masked in {(masked > 0).mean():.0%} of the steps, {masked.mean():.2%} of the tokens"]
    for name, tell in (
        (names.DIVERGENCE_MEAN, lambda values: f"mean divergence {values.mean():.5f}"),
        (names.BEHIND_MEAN, lambda values: f"{values.mean():.2f} versions behind"),
        (names.TIME_STEP, lambda values: f"{values.median():.2f} s a step"),  # validation is not in it
        (names.TOKEN_GEN, lambda values: f"rollout {1000 / values.median():.0f} tokens a second"),
        (names.TOKEN_UPDATE, lambda values: f"update {1000 / values.median():.0f} tokens a second"),
    ):
        if name in logged:
            said.append(tell(logged[name]))
    return "; ".join(said)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help="of the plan, a file of benchmarks/studies")
    parser.add_argument("do", choices=("plan", "run", "read"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs", help="where data, model and runs lie (%(default)s)")
    options = parser.parse_args(argv)
    try:
        plan = load(options.name)
    except FileNotFoundError as error:
        parser.error(str(error))
    work = options.work.resolve()
    if options.do == "run":
        sys.exit(start(plan, work))
    if options.do == "plan":
        show(plan, work)
    else:
        print(read(plan, work))


if __name__ == "__main__":
    main()
