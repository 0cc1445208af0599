"""Do the tests notice? Twenty lines, each broken once in a copy of the tree, and the tests that have to fail then.

    python -m tests.mutations [--list] [NAME...]

Nothing here is part of the suite: a mutation costs a start of pytest. The tree itself is never touched.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("cppo_verl", "hydra_plugins", "data_prep", "recipe", "run_scripts", "tests", "pyproject.toml")
FAILED = 1  # pytest's status when tests ran and some failed; others mean that they did not run


@dataclass(frozen=True)
class Mutation:
    """``line`` stands once in ``file`` and becomes ``broken``, which is ``what``; ``tests`` must fail then."""

    name: str
    what: str
    file: str
    line: str
    broken: str
    tests: str


RULES, BUDGET = "cppo_verl/trust_region/rules.py", "cppo_verl/trust_region/budget.py"
TOPK, SKIP = "cppo_verl/trust_region/topk.py", "cppo_verl/integration/skip.py"
CHECKPOINTS = "cppo_verl/launch/checkpoints.py"
MUTATIONS = (
    Mutation(
        "rules-own-spending",
        "CPPO: a token's own divergence counts as spent before it",
        RULES,
        "threshold = before(allowance.sub_(spent), knobs.delta).clamp_(max=knobs.delta)",
        "threshold = allowance.sub_(spent).clamp_(max=knobs.delta)",
        "tests/trust_region/test_rules.py",
    ),
    Mutation(
        "rules-first-clause",
        "CPPO: tokens that go back toward the rollout are masked too",
        RULES,
        "keep = tokens.toward_rollout | within",
        "keep = within",
        "tests/trust_region/test_rules.py",
    ),
    Mutation(
        "rules-threshold",
        "DPPO: a token at the threshold is over it",
        RULES,
        "over = spending > knobs.delta",
        "over = spending >= knobs.delta",
        "tests/trust_region/test_rules.py",
    ),
    Mutation(
        "budget-cap",
        "quantile budget: capped at the factor itself, not at factor times floor",
        BUDGET,
        ".clamp(knobs.delta_b, knobs.budget_cap * knobs.delta_b)",
        ".clamp(knobs.delta_b, knobs.budget_cap)",
        "tests/trust_region/test_budget.py",
    ),
    Mutation(
        "budget-interpolation",
        "quantile budget: the lower order statistic, not interpolated",
        BUDGET,
        "torch.lerp(high, low, rank.frac()",
        "torch.lerp(high, low, rank.ceil() - rank.floor()",
        "tests/trust_region/test_budget.py",
    ),
    Mutation(
        "topk-rest",
        "top-K TV: the rest of the mass is no category",
        TOPK,
        "total = total + (rest_mass(log_pi, log_prob) - rest).abs()",
        "total = total + (rest_mass(log_pi, log_prob) - rest).abs() * 0",
        "tests/trust_region/test_topk.py",
    ),
    Mutation(
        "topk-sampled-twice",
        "top-K transport: the sampled token is listed a second time",
        TOPK,
        "log_probs = without_sampled(log_probs.double(), ids, sampled_ids)",
        "log_probs = log_probs.double()",
        "tests/trust_region/test_topk.py",
    ),
    Mutation(
        "skip-longest",
        "skip of zero-variance rows: the longest stay as filling",
        SKIP,
        "key=lambda row: lengths[row])",
        "key=lambda row: -lengths[row])",
        "tests/integration/test_skip.py",
    ),
    Mutation(
        "checkpoint-seal",
        "checkpoints: one whose last file was cut off counts as whole",
        CHECKPOINTS,
        "return _archive_fault(folder / SEAL) or _queue_fault(folder)",
        "return _queue_fault(folder)",
        "tests/faults/test_checkpoints.py",
    ),
    Mutation(
        "checkpoint-oldest",
        "checkpoints: resuming from the oldest whole one",
        CHECKPOINTS,
        "return max(whole)",
        "return min(whole)",
        "tests/faults/test_checkpoints.py",
    ),
    Mutation(
        "skip-any-group",
        "skip: every group is one of equal rewards",
        SKIP,
        "len(set(group.values())) == 1",
        "len(set(group.values())) >= 1",
        "tests/integration/test_skip.py",
    ),
    Mutation(
        "estimator-outputs",
        "advantages: an output keeps its own row's, not its session's",
        "cppo_verl/integration/estimator.py",
        "return advantages[last]",
        "return advantages",
        "tests/integration/test_skip.py tests/integration/test_trainer.py",
    ),
    Mutation(
        "start-two-rules",
        "start: another preset's rule beside the flag is no contradiction",
        "cppo_verl/integration/start_table.py",
        "asked == given",
        "True",
        "tests/integration/test_checks.py",
    ),
    Mutation(
        "quoting-backslash",
        "overrides: a backslash before a quote is not doubled",
        "cppo_verl/launch/quoting.py",
        "match[1] * 2 +",
        "match[1] +",
        "tests/launch/test_quoting.py",
    ),
    Mutation(
        "checkpoint-kinds",
        "checkpoints: shards of the optimizer may be missing",
        CHECKPOINTS,
        "for kind in kinds:",
        'for kind in ("model",):',
        "tests/faults/test_checkpoints.py",
    ),
    Mutation(
        "evaluation-nan",
        "evaluation: a score that is no number is a score",
        "cppo_verl/evaluation/scoring.py",
        "if not math.isfinite(reward) or not math.isfinite(acc or 0.0):",
        "if False:",
        "tests/evaluation/test_scoring.py",
    ),
    Mutation(
        "answers-sign",
        "answers: the minus of a difference is a sign",
        "data_prep/answers.py",
        "return not NO_SIGN.search(rest) if",
        "return True if",
        "tests/data_prep/test_answers.py",
    ),
    Mutation(
        "judge-code",
        "reasoning-gym: an answer goes to the evaluator as it is",
        "data_prep/gym_judge.py",
        "parse(expression(text)",
        "parse(text",
        "tests/data_prep/test_reasoning_gym.py",
    ),
    Mutation(
        "judge-precision",
        "maths reward: 2^-98 and 2^-99 are the same number",
        "data_prep/math_judge.py",
        "10**40",
        "10**10",
        "tests/data_prep/test_math_reward.py",
    ),
    Mutation(
        "report-first-start",
        "reports: a step that was trained twice keeps its first numbers",
        "cppo_verl/reporting/logs.py",
        "rows[step], origin[step] = numbers, path",
        "rows[step], origin[step] = numbers | rows.get(step, {}), path",
        "tests/reporting/test_logs.py",
    ),
)


def status(folder: Path, tests: str) -> int:
    """pytest's exit status there, its output kept back."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests.split()]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode


def is_caught(mutation: Mutation, folder: Path) -> bool:
    """Break the line in the copy, run the tests, mend it.

    Raises:
        RuntimeError: the tests did not run.
    """
    file = folder / mutation.file
    right = file.read_text(encoding="utf-8")
    assert right.count(mutation.line) == 1, f"{mutation.name}: {mutation.line!r} stands in {mutation.file} not once"
    file.write_text(right.replace(mutation.line, mutation.broken), encoding="utf-8")
    found = status(folder, mutation.tests)
    file.write_text(right, encoding="utf-8")
    if found not in (0, FAILED):
        raise RuntimeError(f"{mutation.name}: pytest ended with status {found} on {mutation.tests}")
    return found == FAILED


def main() -> int:
    known = {mutation.name: mutation for mutation in MUTATIONS}
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"mutations (default: all): {' '.join(known)}")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"no mutation is called {unknown[0]}; there are: {' '.join(known)}")
    chosen = [known[name] for name in args.names] or list(MUTATIONS)
    if args.list:
        for mutation in chosen:
            print(f"{mutation.name:22} {mutation.what}\n{'':22} {mutation.file}: {mutation.line}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)
        for tests in sorted({mutation.tests for mutation in chosen}):
            if status(folder, tests):
                raise SystemExit(f"{tests} fails before anything is broken")
        caught = 0
        for mutation in chosen:
            found = is_caught(mutation, folder)
            caught += found
            print(f"{'caught' if found else 'MISSED'}  {mutation.name:22} {mutation.what}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return caught < len(chosen)


if __name__ == "__main__":
    sys.exit(main())
