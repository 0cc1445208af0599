"""The pocket benchmark: its tasks, its sampler, its exact quantities, and its smoke test as a command."""

import csv
import math
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch

pytest.importorskip("verl")

from benchmarks.pocket import exact, grid, losses, report, train  # noqa: E402
from benchmarks.pocket.__main__ import RESULTS
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
    assert task.reward(prompt, torch.tensor([right])).tolist() == [1.0]
    wrong = right.copy()
    wrong[-3] = 6
    assert task.reward(prompt, torch.tensor([wrong])).tolist() == [0.0]


def test_a_slip_is_carried_on_to_the_end():
    task = Trace(operations=2, base=7)
    prompt = torch.tensor([[3, 5, 7, 8]])  # a += b, b += a
    slipped = task.trace(prompt, torch.tensor([[2, 0]]))
    assert slipped.tolist() == [[7, 3, 5, 11, 8, 3, 1, 11]]


def test_demonstrations_without_slips_are_right_and_with_slips_often_wrong():
    generator = torch.Generator().manual_seed(0)
    clean, spoiled = Trace(8, errors=0.0), Trace(8, errors=2.0)
    assert bool(clean.reward(*clean.demonstrations(200, generator)).all())
    assert 0.1 < float(spoiled.reward(*spoiled.demonstrations(400, generator)).mean()) < 0.7


def test_branch_rewards_the_prefix_before_the_first_error_times_the_branch_value():
    task = Branch(length=4, seed=3)
    context, branch = 2, int(task.values[2].argmax())
    path = [branch]
    for step in range(3):
        path.append(int(task.right[context, branch, step, path[-1]]))
    prompt = torch.tensor([[context + 3]])
    assert task.reward(prompt, torch.tensor([path])).tolist() == [1.0]
    path[2] = (path[2] + 1) % 3
    assert task.reward(prompt, torch.tensor([path])).item() == pytest.approx(1 / 3)
    path[0] = 3 + context  # no branch at all
    assert task.reward(prompt, torch.tensor([path])).item() == 0.0
    best = task.rewards().amax(-1)
    assert best.tolist() == [1.0] * 4


# ---- sampling


def test_sampling_with_the_cache_reports_the_law_of_a_full_forward():
    task = Trace(4)
    model = random_model(task)
    prompts = task.prompts(16, torch.Generator().manual_seed(1))
    tokens, log_mu = sample(model, prompts, task.length, seed=5)
    torch.testing.assert_close(log_mu, response_log_law(model, prompts, tokens), atol=2e-5, rtol=1e-4)
    assert torch.equal(tokens, sample(model, prompts, task.length, seed=5).tokens)
    assert not torch.equal(tokens, sample(model, prompts, task.length, seed=6).tokens)


def test_tokens_follow_the_reported_law():
    task = Branch(length=3)
    prompts = torch.full((20_000, 1), 3)
    tokens, log_mu = sample(random_model(task), prompts, 1, seed=0)
    observed = torch.bincount(tokens[:, 0], minlength=task.vocabulary) / 20_000
    expected = log_mu[0, 0].exp()
    assert bool(((observed - expected).abs() < 4 * (expected / 20_000).sqrt() + 1e-4).all())


def test_temperature_noise_changes_the_law_and_is_reported():
    task = Trace(4)
    model, prompts = random_model(task), task.prompts(8, torch.Generator().manual_seed(1))
    tokens, log_mu = sample(model, prompts, task.length, 5, temperature_noise=0.2)
    own = response_log_law(model, prompts, tokens)
    torch.testing.assert_close(log_mu.exp().sum(-1), torch.ones(8, task.length))
    assert float(full_tv(own, log_mu).mean()) > 0.005
    assert torch.equal(own.argmax(-1), log_mu.argmax(-1))  # a temperature keeps the order


def test_rollout_engines_round_weights():
    model = random_model(Trace(4))
    weight = model.head.weight
    assert torch.equal(rollout_engine(model, "exact").head.weight, weight)
    assert torch.equal(rollout_engine(model, "bf16").head.weight, weight.bfloat16().float())
    for name, levels in (("int8", 127), ("int4", 7)):
        error = (rollout_engine(model, name).head.weight - weight).abs()
        assert bool((error <= 0.5001 * weight.abs().amax(-1, keepdim=True) / levels).all())
        assert float(error.max()) > 0
    with pytest.raises(ValueError, match="fp3"):
        rollout_engine(model, "fp3")


# ---- exact quantities


def test_tables_are_the_model_s_law_at_each_prefix():
    task = Branch(length=4)
    model = random_model(task)
    tables = task.tables(model)
    assert [tuple(x.shape) for x in tables] == [(4, 3**t, 7) for t in range(4)]
    prompt, response = torch.tensor([[5]]), torch.tensor([[2, 0, 1, 1]])
    law = response_log_law(model, prompt, response)[0].exp()
    for t, row in enumerate((0, 2, 6, 19)):  # 2; 2*3 + 0; (2*3 + 0)*3 + 1
        torch.testing.assert_close(tables[t][2, row].float(), law[t], atol=1e-6, rtol=1e-5)


def test_exact_reward_agrees_with_sampling():
    task = Branch(length=5, seed=1)
    model = random_model(task, seed=4)
    prompts = task.every_prompt().repeat_interleave(5_000, 0)
    rewards = task.reward(prompts, sample(model, prompts, task.length, seed=2).tokens)
    error = float(rewards.std()) / math.sqrt(len(rewards))
    assert abs(float(rewards.mean()) - exact.expected_reward(task, task.tables(model))) < 4 * error


def test_comparison_with_itself_is_zero():
    task = Branch(length=4)
    tables = task.tables(random_model(task))
    found = exact.compare(task, tables, tables, **train.REFERENCE)
    assert found["bound_holds"] == 1.0 and found["residual"] == pytest.approx(2 * 0.5 * 4 * 3 * 0.15 * 0.02 / 0.8)
    for name in ("improvement", "surrogate", "gap", "gap_bound", "token_excess", "prefix_excess"):
        assert found[name] == pytest.approx(0.0, abs=1e-12)


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


# ---- losses


def test_presets_are_composed_over_their_base():
    cispo = losses.preset("cispo")
    assert (cispo["policy_loss"]["loss_mode"], cispo["clip_ratio_high"]) == ("cispo", 0.28)
    assert losses.preset("cppo")["policy_loss"]["delta_b"] == 0.02
    assert losses.preset("cppo_soft")["policy_loss"]["gate"] == "soft"


def laws(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log().unsqueeze(0)


def test_dppo_gradient_and_mask_worked_by_hand():
    log_mu = laws([0.5, 0.5], [0.5, 0.5])
    log_pi = laws([0.6, 0.4], [0.8, 0.2]).requires_grad_()  # TV 0.1 and 0.3 against a threshold of 0.15
    tokens, advantages = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)
    loss, sums = losses.policy_loss({"preset": "dppo_tv"}, 2)(log_pi, log_mu, tokens, advantages)
    loss.backward()
    torch.testing.assert_close(log_pi.grad, torch.tensor([[[-1.2 / 2, 0.0], [0.0, 0.0]]]))
    assert losses.means([sums])["masked_share"] == 0.5
    free, sums = losses.policy_loss({"preset": "dppo_tv", "delta": 1.0}, 2)(log_pi, log_mu, tokens, advantages)
    assert losses.means([sums])["masked_share"] == 0.0


def test_verl_s_own_losses_report_the_same_metrics():
    log_mu, log_pi = laws([0.5, 0.5]), laws([0.8, 0.2]).requires_grad_()
    for name, masked, capped in (("grpo", 1.0, 0.0), ("cispo", 0.0, 1.0)):
        _, sums = losses.policy_loss({"preset": name}, 1)(log_pi, log_mu, torch.zeros(1, 1).long(), torch.ones(1, 1))
        found = losses.means([sums])
        assert (found["masked_share"], found["ratio_capped_share"]) == (masked, capped)


def test_listing_the_whole_vocabulary_gives_the_full_divergence():
    generator = torch.Generator().manual_seed(0)
    log_pi, log_mu = (torch.randn(5, 3, 6, generator=generator).log_softmax(-1) for _ in range(2))
    tokens = torch.randint(6, (5, 3), generator=generator)
    whole = losses.listed_divergence(log_pi, log_mu, tokens, 64, "tv")
    torch.testing.assert_close(whole, full_tv(log_pi, log_mu), atol=1e-5, rtol=1e-4)
    assert bool((losses.listed_divergence(log_pi, log_mu, tokens, 2, "tv") <= whole + 1e-6).all())


def test_advantages_are_group_relative():
    found = losses.advantages_of(torch.tensor([1.0, 0.0, 1.0, 1.0]), [0, 0, 1, 1], 3)
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, -1.0, 0.0, 0.0]) / math.sqrt(2), atol=1e-4, rtol=0)
    assert torch.equal(found, found[:, :1].expand(4, 3))


# ---- the grid and how it is read


def test_every_contrast_of_the_claims_is_in_the_plan():
    full = grid.load(quick=False)
    planned = list(grid.specs(full))
    assert len(planned) == len(set(planned)) and len(full["seeds"]) >= 5
    pairs = {(s.setting, s.rule) for s in planned if s.seed == 0}
    for claim in full["claims"]:
        for setting, a, b in claim["contrasts"] + claim.get("less", []):
            assert {(setting, name) for name in [a, *([b] if isinstance(b, str) else b)]} <= pairs, claim["claim"]


def test_interval_and_verdicts():
    mean, low, high = report.interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    many = [float(x) for x in range(23)]  # 22 degrees of freedom, standard deviation sqrt(46)
    assert report.interval(many)[2] - 11 == pytest.approx(2.0739 * math.sqrt(46) / math.sqrt(23), rel=1e-4)
    cases = {("greater", 0.1, 0.2): "supported", ("greater", -0.2, -0.1): "not supported"}
    cases |= {("greater", -0.1, 0.1): "undecided here", ("equal", -0.04, 0.02): "supported"}
    cases |= {("equal", 0.06, 0.2): "not supported", ("equal", -0.2, 0.01): "undecided here"}
    for (kind, low, high), expected in cases.items():
        assert report.verdict(kind, low, high, 0.05) == expected


def test_differences_are_paired_by_seed():
    numbers = {
        ("cppo", 0): 0.5,
        ("cppo", 1): 0.7,
        ("dppo", 0): 0.4,
        ("dppo", 1): 0.9,
        ("free", 0): 0.8,
        ("free", 1): 0.2,
    }
    runs = {grid.Spec("branch", rule, seed): {"best": x} for (rule, seed), x in numbers.items()}
    runs[grid.Spec("branch", "cppo", 2)] = {"best": 1.0}  # without its partner
    assert report.difference(runs, ["branch", "cppo", "dppo"], "best") == pytest.approx({0: 0.1, 1: -0.2})
    best_of = report.difference(runs, ["branch", "cppo", ["free", "dppo"]], "best")
    assert best_of == pytest.approx({0: 0.1, 1: -0.2})  # dppo has the higher mean


def test_a_run_is_repeatable(tmp_path):
    quick = grid.load(quick=True)
    first, second = (
        train.run(quick["settings"]["branch"], quick["rules"]["cppo"], 7, tmp_path / name) for name in "ab"
    )
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
    done_before = grid.read(tmp_path / "runs.csv")

    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    with (tmp_path / "runs.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    quick = grid.load(quick=True)
    assert len(rows) == len(list(grid.specs(quick)))
    assert done_before
    assert all(any(saved.items() <= row.items() for row in rows) for saved in done_before)
    for row in rows:
        numbers = {k: float(v) for k, v in row.items() if v and k not in ("setting", "rule", "spec")}
        assert all(map(math.isfinite, numbers.values())), row
        assert 0 <= numbers["best"] <= 1 and numbers["tv"] >= 0
        assert ("gap" in numbers) == (row["setting"] == "branch")
    masked = {row["rule"]: float(row["masked_share"]) for row in rows if row["setting"] == "branch"}
    assert masked["cppo"] > 0 and masked["free"] == 0
    for name in ("curves.csv", "claims.csv", "contrasts.csv", "rules.csv", "claims.md", "rules.md", "figures.png"):
        assert (tmp_path / name).stat().st_size > 0

    before = (tmp_path / "runs.csv").read_bytes()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0 and again.stdout == "" and (tmp_path / "runs.csv").read_bytes() == before


def test_runs_of_another_grid_are_refused(tmp_path):
    quick = grid.load(quick=True)
    spec = next(grid.specs(quick))
    grid.write(tmp_path / "runs.csv", [{**spec._asdict(), "spec": "0"}])
    with pytest.raises(ValueError, match="another --out"):
        grid.execute(quick, tmp_path, 1, "cpu", 1.0)


# ---- the committed evidence


@pytest.mark.parametrize("name", RESULTS)
def test_committed_claims_follow_from_the_committed_runs(name, tmp_path):
    shutil.copy(RESULTS[name] / "runs.csv", tmp_path)
    full = grid.load(quick=False, file=grid.GRID.with_name(f"{name}.yaml"))
    fingerprints = {(r["setting"], r["rule"], int(r["seed"])): r["spec"] for r in grid.read(tmp_path / "runs.csv")}
    assert all(grid.fingerprint(full, grid.Spec(*key)) == value for key, value in fingerprints.items())
    runs, doc = report.load_runs(tmp_path), (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    own = full.get("tabulated")
    tables = {"claims": report.markdown(*report.judge(full, runs))}
    tables["rules"] = report.rules_markdown(report.rules_table(runs), own or report.FIGURES, excess=bool(own))
    for kind, text in tables.items():
        assert text == (RESULTS[name] / f"{kind}.md").read_text(encoding="utf-8")
        assert text in doc
