"""One run: warm start, then rollouts by a perturbed and stale engine, several updates a batch, one rule."""

import fcntl
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.pocket import exact, losses
from benchmarks.pocket.model import Transformer, response_log_law, rollout_engine, sample
from benchmarks.pocket.tasks import Branch, Trace
from cppo_verl import atomic
from cppo_verl.trust_region.bound import certificate
from cppo_verl.trust_region.divergence import full_tv
from cppo_verl.trust_region.schedule import linear_weights
from cppo_verl.trust_region.thresholds import next_scale

TASKS = {"trace": Trace, "branch": Branch}
BINS = 8  # parts of a response in the curves by position
REFERENCE = {"delta": 0.15, "delta_b": 0.02, "w_min": 0.8}  # the paper's thresholds: every rule is measured by them
LOGGED = ("masked_share", "masked_share_token_threshold", "masked_share_prefix_budget", "masked_share_positive")
LOGGED += ("prefix_average", "effective_delta_b", "ratio_capped_share")
Row = dict[str, Any]  # a line of the table


def warm_start(setting: Row, task: Trace | Branch, seed: int, cache: Path) -> Transformer:
    """The supervised start shared by all rules of a task and seed, kept in ``cache``; torch's global seed is set."""
    shape = {k: setting[k] for k in ("width", "layers") if k in setting}
    torch.manual_seed(seed)
    model = Transformer(task.vocabulary, task.prompt_length + task.length, **shape)
    steps, rate = setting["warm_steps"], 3e-3
    given = [setting["task"], *setting.get("options", {}).items(), *shape.items(), steps, rate, seed]
    file = cache / ("-".join(str(x) for x in given).translate(str.maketrans("(),' ", "_____")) + ".pt")
    cache.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:  # the first process trains, the others wait for its file
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            _imitate(model, task, steps, rate, seed)
            with atomic.replacing(file) as part:
                torch.save(model.state_dict(), part)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


def _imitate(model: Transformer, task: Trace | Branch, steps: int, rate: float, seed: int) -> None:
    """Supervised steps on the task's demonstrations; the rate rises over 50 steps and falls to 0 in the second half."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        prompts, tokens = task.demonstrations(64, generator)
        loss = F.nll_loss(response_log_law(model, prompts, tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(setting: Row, rule: Row, seed: int, cache: Path) -> list[Row]:
    """Rows of the learning curve, one an evaluation; the first is before training and has its score alone.

    The order of prompts, the uniforms that samples are drawn with, and the warm start depend on setting and seed only.
    """
    task = TASKS[setting["task"]](**setting.get("options", {}), seed=seed)
    model = warm_start(setting, task, seed, cache)
    loss_of = losses.policy_loss(rule, task.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting["lr"], weight_decay=0.0)
    precision, noise = setting.get("engine", "exact"), setting.get("temperature_noise", 0.0)
    engines = deque([rollout_engine(model, precision)], maxlen=setting.get("staleness", 0) + 1)
    order = torch.Generator().manual_seed(seed)
    scale, target = 1.0, rule.get("budget_target")
    rows: list[Row] = [{"step": 0, "score": score(task, model)}]
    for step in range(1, setting["steps"] + 1):
        mu = engines[0]
        prompts = task.prompts(setting["prompts"], order).repeat_interleave(setting["group"], 0)
        tokens, log_mu = sample(mu, prompts, task.length, seed * 100_003 + step, noise)
        rewards = task.reward(prompts, tokens)
        advantages = losses.advantages_of(rewards, setting["group"], task.length)
        anchor, weights = log_mu, None
        if rule.get("anchor") == "proximal":
            with torch.no_grad():
                anchor = response_log_law(model, prompts, tokens)
            weights = losses.carried(anchor, log_mu, tokens)
        active = advantages[:, 0].nonzero().flatten()
        active = active[torch.randperm(len(active), generator=torch.Generator().manual_seed(step))]
        sums, drift = [], []
        for part in active.tensor_split(setting["updates"]) if len(active) else ():
            if not len(part):
                continue
            log_pi = response_log_law(model, prompts[part], tokens[part])
            own = None if weights is None else weights[part]
            loss, found = loss_of(log_pi, anchor[part], tokens[part], advantages[part], own, scale)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            sums.append(found)
            drift.append(full_tv(log_pi.detach(), log_mu[part]))
        if step % setting["evaluate_every"] == 0 or step == setting["steps"]:
            row = {"step": step, "score": score(task, model), "reward": float(rewards.mean())}
            if sums:
                row |= {name: value for name, value in losses.means(sums).items() if name in LOGGED} | _moved(drift)
                row |= {} if target is None else {"threshold_scale": scale}
            if isinstance(task, Branch):
                row |= exact.compare(task, task.tables(mu), task.tables(model), **REFERENCE)
            rows.append(row)
        if target is not None and sums:
            scale = next_scale(scale, losses.means(sums)["masked_share"], target)
        engines.append(rollout_engine(model, precision))
    return rows


def _moved(drift: list[torch.Tensor]) -> Row:
    """Full-vocabulary TV of the trained policy from the rollout: a step's mean, its first and last update, by position;
    and the certificate's realised sum over Theorem 1's residual, after all updates of the batch but one."""
    together, last = torch.cat(drift), drift[-1]
    mask = torch.ones_like(last, dtype=torch.bool)
    weights = linear_weights(mask, REFERENCE["w_min"], last.dtype)
    usage = certificate(last, weights, mask, REFERENCE["delta"], REFERENCE["delta_b"]).ratio
    found = {"tv": together.mean(), "tv_first": drift[0].mean(), "tv_last": last.mean(), "bound_usage": usage}
    found |= {f"tv_bin{i}": part.mean() for i, part in enumerate(together.tensor_split(BINS, -1)) if part.numel()}
    return {name: float(value) for name, value in found.items()}


@torch.no_grad()
def score(task: Trace | Branch, model: Transformer) -> float:
    """Exact J for the branching task; else the mean reward of one sample on each of 256 prompts fixed once for all."""
    if isinstance(task, Branch):
        return exact.expected_reward(task, task.tables(model))
    asked = task.prompts(256, torch.Generator().manual_seed(999))
    return float(task.reward(asked, sample(model, asked, task.length, 999)[0]).mean())
