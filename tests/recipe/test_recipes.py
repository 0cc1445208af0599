"""The paper's runs: every (model, method) composes over verl's config with the numbers of the paper's tables."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from cppo_verl import paper
from cppo_verl.launch.overrides import compose
from recipe import methods, settings
from recipe.shapes import PAPER_NAMES
from tests import ROOT

MODELS = tuple(PAPER_NAMES)
FOR_GPUS = torch.version.cuda is not None  # an environment in which a recipe would start; else it is planned here only
SCRIPTS = ("ESTIMATOR", "FOLLOW", "METHOD", "NNODES", "MODEL_PATH", "STEPS", "OFFLOAD", "DELTA", "DELTA_B", "RUN")
SCRIPTS += ("SP", "TP", "TOKENS_PER_GPU", "ATTN", "N", "PROMPTS", "MINIBATCH")


def script(model: str, *arguments: str, **values: str) -> subprocess.CompletedProcess:
    """A model's script, with no knob but ``values`` in its environment."""
    clean = {key: value for key, value in os.environ.items() if key not in SCRIPTS}
    command = ["bash", str(ROOT / f"run_scripts/{model}.sh"), *arguments]
    environment = {**clean, "PYTHON": sys.executable, **values}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@functools.cache
def overrides_of(model: str, **values: str) -> tuple[str, ...]:
    done = script(model, "overrides", **values)
    assert done.returncode == 0, done.stderr
    return tuple(done.stdout.splitlines())


@functools.cache
def config_of(model: str, method: str) -> DictConfig:
    """With the method's overrides in place of those of CPPO, as train.sh would have put them there."""
    lines = overrides_of(model)
    given = dict(line.split("=", 1) for line in lines)
    table_3 = {name: given[methods.KNOB + knob] for knob, name in methods.TABLE_3.items()}
    of_cppo = methods.overrides("cppo", table_3)
    assert lines[: len(of_cppo)] == tuple(of_cppo)
    return compose([*methods.overrides(method, table_3), *lines[len(of_cppo) :]])


def expected(method: str, row: paper.Setting) -> dict[str, object]:
    """The policy_loss knobs that a method must end up with, for a row of Table 3; Table 1's own written out here."""
    of_row = {"delta": row.delta, "delta_b": row.delta_b_min, "w_min": row.w_min, "budget": row.budget}
    dppo = {"loss_mode": "dppo", "divergence": "tv", "estimator": "topk", "ratio_cap": 20.0}
    cppo = {**dppo, "loss_mode": "cppo", "weights": "linear", "horizon": "response", "gate": "hard", "topk": 20}
    trm = {"divergence": "kl", "estimator": "topk"}
    table_1 = {
        "grpo": {"loss_mode": "vanilla", "estimator": "binary"},
        "minpro": {"loss_mode": "minpro", "estimator": "binary", "ratio_cap": 1.28},
        "cispo": {"loss_mode": "cispo", "estimator": "binary"},
        "dppo": dppo,
        "trm_max": {**trm, "loss_mode": "trm_max", "delta": 0.1},
        "trm_avg": {**trm, "loss_mode": "trm_avg", "delta": 0.002},
        "cppo": {**cppo, "budget_quantile": 0.9, "budget_scale": 1.0, "budget_cap": 2.0},
    }
    kl = {
        "cppo_kl": {"divergence": "kl", "delta": 0.1, "delta_b": 0.002},
        "dppo_kl": {"divergence": "kl", "delta": 0.1},
    }
    chosen = methods.METHODS[method]
    changed = {knob: yaml.safe_load(text) for knob, text in chosen.changed.items()}
    return {**(table_1 | kl).get(method, {}), **{knob: of_row[knob] for knob in chosen.table_3}, **changed}


# every method on one model and one on each: what a model sets and what a method sets do not meet
COMBINATIONS = [*((MODELS[0], name) for name in methods.METHODS), *((model, "cppo") for model in MODELS[1:])]


@pytest.mark.parametrize(("model", "method"), COMBINATIONS)
def test_every_combination_composes_with_the_numbers_of_the_paper(model, method):
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.config import validate_config

    from cppo_verl.integration import checks

    config = config_of(model, method)
    checks.require(config)
    assert not need_reference_policy(config)
    validate_config(config, use_reference_policy=False, use_critic=False)

    row = paper.settings()[PAPER_NAMES[model]]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    wanted = expected(method, row)
    assert {knob: actor.policy_loss[knob] for knob in wanted} == wanted
    if method in ("grpo", "cispo"):
        assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)
    assert (config.data.train_batch_size, rollout.n, actor.ppo_mini_batch_size) == (row.prompts, row.n, row.minibatch)
    assert config.data.train_batch_size // actor.ppo_mini_batch_size == row.updates
    assert (config.data.max_prompt_length, config.data.max_response_length) == (1024, row.max_response_tokens)
    assert config.trainer.total_training_steps == paper.t_stop()[row.model]
    assert config.actor_rollout_ref.model.path == f"Qwen/{row.model}"


@pytest.mark.parametrize("model", MODELS)
def test_what_all_methods_share(model):
    """Section 7 of the paper: one optimizer, one way to sample, one validation."""
    config = config_of(model, "cppo").copy()
    OmegaConf.resolve(config)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (actor.optim.optimizer, actor.optim.lr, actor.strategy) == ("AdamW", 1e-6, "fsdp2")
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, -1)
    val = rollout.val_kwargs
    assert (val.n, val.temperature, val.top_p, val.do_sample) == (16, 0.7, 0.95, True)
    assert (actor.entropy_coeff, actor.use_kl_loss, config.algorithm.use_kl_in_reward) == (0, False, False)
    assert (config.algorithm.adv_estimator, config.algorithm.norm_adv_by_std_in_grpo) == ("group_relative", True)
    assert config.trainer.v1.trust_region.skip_zero_variance
    length = config.data.max_response_length
    assert (actor.loss_agg_mode, actor.loss_scale_factor) == ("seq-mean-token-sum-norm", length)
    assert rollout.max_model_len == config.data.max_prompt_length + length
    assert [Path(file).name for file in config.data.val_files] == ["aime24.parquet", "aime25.parquet", "aime26.parquet"]
    # by these the report knows model, method and seed
    assert (config.trainer.project_name, config.trainer.experiment_name) == (model, "cppo-seed0")
    # the checkpoints and validations of Table 4 fall on its last steps
    assert config.trainer.total_training_steps % config.trainer.test_freq == 0


def test_switches_of_the_scripts():
    given = settings.parse(overrides_of("qwen3_1p7b_base", FOLLOW="scripts", ESTIMATOR="binary", LOGGERS="wandb"))
    knobs = {name: given[methods.KNOB + name] for name in ("horizon", "budget_cap", "estimator")}
    assert knobs == {"horizon": "max", "budget_cap": 5, "estimator": "binary"}
    assert given["algorithm.norm_adv_by_std_in_grpo"] is False
    assert given["trainer.logger"] == "[wandb,file]"  # the report reads the file


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"METHOD": "ppo"}, ("METHOD='ppo'", *methods.METHODS)),
        ({"OFFLOAD": "some"}, ("OFFLOAD='some'", "none", "states", "all")),
        ({"DATA": "/nowhere"}, ("no data at /nowhere/train.parquet", "data_prep.math_data")),
    ],
)
def test_a_wrong_choice_is_answered_with_what_there_is(values, named):
    done = script("qwen3_1p7b", "run" if "DATA" in values else "plan", **values)
    assert done.returncode == 2
    assert all(name in done.stderr for name in named)


def test_a_plan_needs_nothing_but_python(bare_python, tmp_path):
    model = "qwen3_30b_a3b_base"
    values = {"HOME": str(tmp_path), "WORK": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = script(model, "plan", "data.seed=3", PYTHON=bare_python, **values)
    assert done.returncode == 0, done.stderr
    row = paper.settings()[PAPER_NAMES[model]]
    responses, steps = row.prompts * row.n, paper.t_stop()[row.model]
    for text in (
        f"{row.prompts} prompts x {row.n} = {responses} responses; {row.updates} updates of 32 prompts",
        f"at most {responses * (1024 + row.max_response_tokens):,}",
        f"steps          {steps} ",
        f"within {steps} steps: {paper.best_avg16()['CPPO'][model]:.2f}",
        *("GPU-hours", "  fits: ", "+trust_region=cppo", "nothing was started"),
        "  data.seed=3\n",  # a further argument, the last, so it wins
    ):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == [Path(bare_python)]


REFUSED = {
    "SP=3": "ulysses_sequence_parallel_size=3 does not divide the 8 GPUs",
    "PROMPTS=48": "PROMPTS=48 is no multiple of MINIBATCH=32",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_plan_refuses_what_paper_shows(given, bare_python, tmp_path):
    values = dict([given.split("=")])
    done = script("qwen3_1p7b_base", "plan", PYTHON=bare_python, **values)
    assert done.returncode == 2, done.stderr
    assert any(REFUSED[given] in line for line in done.stdout.splitlines() if line.startswith("PROBLEM: "))
    assert "verl is not installed in this Python" in done.stdout
    assert "GPU-hours" not in done.stdout and not done.stderr
    if given == "SP=3":  # a run refuses the same before anything starts
        for name in ("train", "aime24", "aime25", "aime26"):
            (tmp_path / f"{name}.parquet").touch()
        run = {"DATA": str(tmp_path), "RUN": str(tmp_path / "run"), **values}
        done = script("qwen3_1p7b_base", PYTHON=bare_python, **run)
        assert done.returncode == 2 and REFUSED[given] in done.stdout and not (tmp_path / "run").exists()


@pytest.mark.stack
def test_a_plan_with_verl_checks_the_composed_config():
    """Of two things that only the composed config shows, and one that paper shows, all are said."""
    overrides = ["actor_rollout_ref.rollout.top_p=0.9", "trainer.use_v1=false"]
    done = script("qwen3_1p7b_base", "plan", *overrides, TOKENS_PER_GPU="100", VERL_PLATFORM="")
    assert done.returncode == 2, done.stderr
    for said in ("rollout.top_p=0.9", "trainer.use_v1=False", "ppo_max_token_len_per_gpu=100"):
        assert said in done.stdout
    assert ("all that the run checks" if FOR_GPUS else "what the run checks of its composed config") in done.stdout
    # on the CPU platform an environment is complete without flash attention, until sequences are split
    here = script("qwen3_30b_a3b_base", "plan", VERL_PLATFORM="cpu")
    assert here.returncode == 2, here.stdout
    assert "attn_implementation=flash_attention_2 cannot be used in this environment" in here.stdout
    assert "all that the run checks at its start" in here.stdout


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ({}, "sdpa" if FOR_GPUS else "flash_attention_2"),  # planned here, run elsewhere: there it is installed
        ({"VERL_PLATFORM": "cpu"}, "sdpa"),
        ({"VERL_PLATFORM": "cpu", "SP": "2"}, "flash_attention_2"),  # nothing else would be right
        ({"ATTN": "flash_attention_3"}, "flash_attention_3"),
    ],
)
def test_the_attention_is_chosen_where_the_run_would_start(values, chosen):
    done = script("qwen3_1p7b", "overrides", **{"VERL_PLATFORM": "", **values})
    assert f"attn_implementation={chosen}" in done.stdout
    assert ("sdpa, which is slower" in done.stderr) == (chosen == "sdpa")


def test_config_prints_the_resolved_yaml():
    done = script("qwen3_8b_base", "config")
    assert done.returncode == 0, done.stderr
    assert OmegaConf.create(done.stdout).actor_rollout_ref.actor.policy_loss.max_response_length == 8192
    assert "${" not in done.stdout


def test_the_page_agrees_with_the_tables():
    """docs/recipes.md repeats Table 3 and two columns of Table 1, and names every method."""
    page, scores = (ROOT / "docs/recipes.md").read_text(), paper.best_avg16()
    assert {name.lower().replace("-", "_") for name in paper.METHODS} == set(methods.TABLE_1)
    for model, name in PAPER_NAMES.items():
        row = paper.settings()[name]
        cells = (
            f"`{model}.sh`", f"{row.prompts} x {row.n}", f"{row.minibatch} ({row.updates})",
            f"{row.max_response_tokens:,}", f"{row.delta:.2f}", f"{row.delta_b_min:.3f}", f"{row.w_min}", row.budget,
            str(paper.t_stop()[name]), f"{scores['DPPO'][model]:.2f}, {scores['CPPO'][model]:.2f}",
        )  # fmt: skip
        assert f"| {' | '.join(cells)} |" in page
    assert all(f"`{method}`" in page for method in methods.METHODS)
