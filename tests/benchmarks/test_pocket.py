"""The pocket benchmark: its tasks, its sampler, its exact quantities, how it is read, and its command."""

import math
import subprocess
import sys
import time

import numpy
import pandas
import psutil
import pytest
import torch

pytest.importorskip("verl")

from benchmarks.pocket import exact, grid, losses, report, train  # noqa: E402
from benchmarks.pocket.__main__ import GRIDS, RESULTS, TABLES  # noqa: E402
from benchmarks.pocket.model import Transformer, response_log_law, rollout_engine, sample  # noqa: E402
from benchmarks.pocket.tasks import Branch, Trace  # noqa: E402
from cppo_verl.trust_region import bound  # noqa: E402
from cppo_verl.trust_region.divergence import full_tv  # noqa: E402
from tests import ROOT


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(task, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(task.vocabulary, task.prompt_length + task.length, width=16, layers=2)
    for parameter in model.parameters():  # far enough from uniform for the laws to differ
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


# ---- tasks


def test_trace_of_a_program_worked_by_hand():
    task = Trace(operations=4, base=7)
    plus_a, plus_b, swap, double = 7, 8, 9, 10
    prompt = torch.tensor([[3, 5, plus_a, swap, double, plus_b]])
    right = [plus_a, 1, 5, 11, swap, 5, 1, 11, double, 4, 1, 11, plus_b, 4, 5, 11]
    assert task.trace(prompt).tolist() == [right]
    assert task.reward(prompt, torch.tensor([right, right[:-3] + [6, 5, 11]])).tolist() == [1.0, 0.0]
    slipped = Trace(2, base=7).trace(torch.tensor([[3, 5, 7, 8]]), torch.tensor([[2, 0]]))  # a += b, b += a
    assert slipped.tolist() == [[7, 3, 5, 11, 8, 3, 1, 11]]  # carried on to the end
    spoiled = Trace(8, errors=2.0)
    assert 0.1 < float(spoiled.reward(*spoiled.demonstrations(400, torch.Generator().manual_seed(0))).mean()) < 0.7


def test_branch_rewards_the_prefix_before_the_first_error_times_the_branch_value():
    task = Branch(length=4, seed=3)
    context, branch = 2, int(task.values[2].argmax())
    path = [branch]
    for step in range(3):
        path.append(int(task.right[context, branch, step, path[-1]]))
    prompt = torch.tensor([[context + 3]])
    late = [*path[:2], (path[2] + 1) % 3, path[3]]
    rewards = [task.reward(prompt, torch.tensor([x])).item() for x in (path, late, [3 + context, *late[1:]])]
    assert rewards == pytest.approx([1.0, 1 / 3, 0.0])  # the last begins with no branch at all
    assert task.rewards().amax(-1).tolist() == [1.0] * 4


# ---- sampling


def test_sampling_with_the_cache_reports_the_law_of_a_full_forward():
    task = Trace(4)
    model, prompts = random_model(task), task.prompts(16, torch.Generator().manual_seed(1))
    tokens, log_mu = sample(model, prompts, task.length, seed=5)
    torch.testing.assert_close(log_mu, response_log_law(model, prompts, tokens), atol=2e-5, rtol=1e-4)
    assert torch.equal(tokens, sample(model, prompts, task.length, seed=5)[0])
    assert not torch.equal(tokens, sample(model, prompts, task.length, seed=6)[0])
    tokens, log_mu = sample(model, prompts, task.length, 5, noise=0.2)
    own = response_log_law(model, prompts, tokens)
    assert float(full_tv(own, log_mu).mean()) > 0.005
    assert torch.equal(own.argmax(-1), log_mu.argmax(-1))  # a temperature keeps the order


def test_tokens_follow_the_reported_law_and_j_is_their_mean_reward():
    task = Branch(length=5, seed=1)
    model = random_model(task, seed=4)
    prompts = task.every_prompt.repeat_interleave(5_000, 0)
    tokens, log_mu = sample(model, prompts, task.length, seed=2)
    observed = torch.bincount(tokens[:5_000, 0], minlength=task.vocabulary) / 5_000
    expected = log_mu[0, 0].exp()
    assert bool(((observed - expected).abs() < 4 * (expected / 5_000).sqrt() + 1e-4).all())
    rewards = task.reward(prompts, tokens)
    error = float(rewards.std()) / math.sqrt(len(rewards))
    assert abs(float(rewards.mean()) - exact.expected_reward(task, task.tables(model))) < 4 * error


def test_rollout_engines_round_weights():
    model = random_model(Trace(4))
    weight = model.head.weight
    assert torch.equal(rollout_engine(model, "exact").head.weight, weight)
    for name, levels in (("int8", 127), ("int4", 7)):
        error = (rollout_engine(model, name).head.weight - weight).abs()
        assert bool((error <= 0.5001 * weight.abs().amax(-1, keepdim=True) / levels).all())
        assert float(error.max()) > 0


# ---- exact quantities


def test_comparison_matches_lemma_2_and_proposition_4():
    task = Branch(length=4, contexts=1)
    mu, pi = (task.tables(random_model(task, seed)) for seed in (0, 1))
    found = exact.compare(task, mu, pi, **train.REFERENCE)
    ratio = []
    for response in task.every_response(4).tolist():
        row, line = 0, []
        for t, token in enumerate(response):
            line.append(float(pi[t][0, row, token] / mu[t][0, row, token]))
            row = 3 * row + token
        ratio.append(line)
    weighted = exact.law(mu, 3) * task.rewards()
    delta = float((weighted * bound.gap_terms(torch.tensor(ratio, dtype=torch.float64))).sum())
    assert found["gap"] == pytest.approx(abs(delta), rel=1e-9)
    assert found["surrogate"] - found["improvement"] == pytest.approx(delta, rel=1e-9)
    assert 0 < found["gap"] <= found["gap_bound"]
    assert found["token_excess"] > 1  # two unrelated models are no trust region
    same = exact.compare(task, mu, mu, **train.REFERENCE)
    assert same["bound_holds"] == 1.0 and same["residual"] == pytest.approx(2 * 0.5 * 4 * 3 * 0.15 * 0.02 / 0.8)
    assert [same[name] for name in ("improvement", "gap", "token_excess")] == pytest.approx([0, 0, 0], abs=1e-12)


# ---- losses


def test_dppo_gradient_and_masks_worked_by_hand():
    half, tokens, advantages = [0.5, 0.5], torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)
    log_mu = torch.tensor([[half, half]]).log()
    log_pi = torch.tensor([[[0.6, 0.4], [0.8, 0.2]]]).log()  # TV 0.1 and 0.3 against a threshold of 0.15
    for rule, masked, capped in (
        ({"preset": "dppo_tv"}, 0.5, 0.0),
        ({"preset": "dppo_tv", "delta": 1.0}, 0.0, 0.0),
        ({"preset": "grpo"}, 0.5, 0.0),  # verl's own report the same metrics
        ({"preset": "cispo"}, 0.0, 0.5),
    ):
        given = log_pi.clone().requires_grad_()
        loss, sums = losses.policy_loss(rule, 2)(given, log_mu, tokens, advantages)
        found = losses.means([sums])
        assert (found["masked_share"], found["ratio_capped_share"]) == (masked, capped)
        if rule == {"preset": "dppo_tv"}:
            loss.backward()
            torch.testing.assert_close(given.grad, torch.tensor([[[-1.2 / 2, 0.0], [0.0, 0.0]]]))


def test_listing_the_whole_vocabulary_gives_the_full_divergence():
    generator = torch.Generator().manual_seed(0)
    log_pi, log_mu = (torch.randn(5, 3, 6, generator=generator).log_softmax(-1) for _ in range(2))
    tokens = torch.randint(6, (5, 3), generator=generator)
    whole = losses.listed_divergence(log_pi, log_mu, tokens, 64, "tv")
    torch.testing.assert_close(whole, full_tv(log_pi, log_mu), atol=1e-5, rtol=1e-4)
    assert bool((losses.listed_divergence(log_pi, log_mu, tokens, 2, "tv") <= whole + 1e-6).all())


# ---- how it is read


def test_differences_are_paired_by_seed_and_judged_by_their_interval():
    best = {"cppo": {0: 0.5, 1: 0.7, 2: 1.0}, "dppo": {0: 0.4, 1: 0.9}, "free": {0: 0.8, 1: 0.2}}  # 2 has no partner
    rows = [{"setting": "branch", "rule": r, "seed": s, "best": x} for r, by in best.items() for s, x in by.items()]
    runs = report.DataFrame(rows)
    for other in ("dppo", ["free", "dppo"]):  # dppo has the higher mean
        assert report.difference(runs, ["branch", "cppo", other], "best").to_dict() == pytest.approx({0: 0.1, 1: -0.2})
    assert report.difference(runs, ["branch", "cppo", "grpo"], "best").empty  # not run yet
    cases = {("greater", 0.1, 0.2): "supported", ("greater", -0.2, -0.1): "not supported"}
    cases |= {("greater", -0.1, 0.1): "undecided here", ("equal", -0.04, 0.02): "supported"}
    cases |= {("equal", 0.06, 0.2): "not supported", ("equal", -0.2, 0.01): "undecided here"}
    assert {case: report.verdict(*case, 0.05) for case in cases} == cases


@pytest.mark.parametrize("name", GRIDS)
def test_committed_claims_follow_from_the_committed_runs(name, tmp_path):
    """From results.csv.gz to docs: every run is of the grid as it stands, every claim and table is what they give."""
    full, (runs, _) = grid.load(quick=False, file=grid.GRID.with_name(f"{name}.yaml")), grid.read(RESULTS / name)
    planned = list(grid.specs(full))
    assert len(planned) == len(set(planned))
    done = [grid.Spec(*row) for row in zip(runs.setting, runs.rule, runs.seed, strict=True)]
    assert set(done) <= set(planned)
    assert [grid.fingerprint(full, spec) for spec in done] == list(runs.spec)
    report.report({**full, "tabulated": True}, RESULTS / name, tmp_path)
    for table in ("claims", "contrasts", "rules"):
        assert (tmp_path / f"{table}.csv").read_text() == (TABLES / f"{name}_{table}.csv").read_text()
    verdicts = pandas.read_csv(tmp_path / "claims.csv").verdict
    counts = ", ".join(f"{sum(verdicts == each)} {each}" for each in ("supported", "not supported", "undecided here"))
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert f"{name}_claims.csv) has {len(verdicts)} claims: {counts}." in page


# ---- runs


def test_a_run_is_repeatable(tmp_path):
    quick = grid.load(quick=True)
    given = quick["settings"]["branch"], quick["rules"]["cppo"], 7
    first, second = (train.run(*given, tmp_path / name) for name in "ab")
    assert first == second
    assert first[0]["score"] != first[-1]["score"]


@pytest.mark.stack  # imports verl in processes of its own
def test_quick_command_writes_finite_results_and_resumes(tmp_path):
    command = [sys.executable, "-m", "benchmarks.pocket", "--quick", "--processes", "1", "--out", str(tmp_path)]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "min left" in killed.stdout.readline()
    workers = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    assert workers
    deadline = time.monotonic() + 30
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before, _ = grid.read(tmp_path)

    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    runs, curves = grid.read(tmp_path)
    assert len(runs) == len(list(grid.specs(grid.load(quick=True)))) > len(before) > 0
    assert runs.head(len(before))[before.columns].equals(before)  # what was there is as it was
    numbers = runs.select_dtypes("number")
    assert numpy.isfinite(numbers.drop(columns=numbers.columns[numbers.isna().any()])).all(None)
    assert runs.best.between(0, 1).all() and (runs.tv >= 0).all()
    assert (runs.gap.notna() == (runs.setting == "branch")).all()
    masked = runs[runs.setting == "branch"].groupby("rule").masked_share.max()
    assert masked["cppo"] > 0 and masked["free"] == 0
    for name in ("claims.csv", "contrasts.csv", "rules.csv", "figures.png"):
        assert (tmp_path / name).stat().st_size > 0

    table = (tmp_path / grid.TABLE).read_bytes()
    grid.execute(grid.load(quick=True), tmp_path, 1)  # nothing is left to run
    assert (tmp_path / grid.TABLE).read_bytes() == table
    grid.write(tmp_path, runs.assign(spec="0"), curves)
    with pytest.raises(ValueError, match="another --out"):
        grid.execute(grid.load(quick=True), tmp_path, 1)
