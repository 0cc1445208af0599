"""Two starts of the stack that train many command lines, one after the other (``rotating``)."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cppo_verl import presets
from tests import ROOT, pages

from .families import FAMILIES, LORA_FAMILIES, Family
from .runs import SAMPLED, Work, ended_well, environment, logged, quickstart

STEPS_EACH = int(os.environ.get("CPPO_VERL_STEPS_EACH", "1"))
SIZES = ["data.max_response_length=64", "data.train_batch_size=8", "actor_rollout_ref.rollout.n=4"]
SIZES += ["actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.actor.use_dynamic_bsz=true"]
COMMON = (
    "trainer.v1.trainer_mode=rotating",
    f"+trainer.v1.rotating.steps_each={STEPS_EACH}",
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.optim.lr=2e-4",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=constant",
    "actor_rollout_ref.rollout.temperature=1.3",  # at 1 the last turns find nearly every answer right
    "actor_rollout_ref.actor.policy_loss.estimator=topk",  # so that the rollout hands it on
    "actor_rollout_ref.actor.use_kl_loss=true",  # so that there is a reference policy
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
)
EXTERNAL = {"VERL_USE_EXTERNAL_MODULES": "tests.e2e.rotating", "PYTHONPATH": str(ROOT)}


def turns() -> dict[str, Family]:
    """The page's rule, every preset, the runs that people have."""
    return {
        "cutoff": Family((), preset="cutoff"),
        **{name: Family((), preset=name) for name in presets.names()},
    } | FAMILIES


def arguments(family: Family) -> list[str]:
    """A turn's command line, in the sizes of the start."""
    return [f"+trust_region={family.preset}", "+platform=cpu", *SIZES, *family.arguments]


def by_turn(run: Path, planned: Mapping[str, Family]) -> dict[str, list[dict]]:
    """The logged steps of each turn."""
    steps = [data for step, data in logged(run).items() if step > 0]
    assert len(steps) == STEPS_EACH * len(planned)
    return {name: steps[i * STEPS_EACH : (i + 1) * STEPS_EACH] for i, name in enumerate(planned)}


def own_rule(work: Work, folder: Path) -> Path:
    """The run that a reader of docs/extending.md gets who copies its files and commands into the empty ``folder``.

    To its last command the test adds what is sampled in the validation before training, and the turns.
    """
    for language in ("python", "yaml"):
        pages.write("extending.md", language, folder)
    run = work.folder / "quickstart-cutoff-seed0-ranks1"
    loops = work.folder / "loops.yaml"
    loops.write_text("[{name: holes, _target_: tests.e2e.holes.Holes}]\n")
    found = [f"hydra.searchpath=[{folder}]", f"actor_rollout_ref.actor.policy_loss.rule_module={folder / 'cutoff.py'}"]
    more = _planned(
        run, {name: [*arguments(turn), *(found if name == "cutoff" else [])] for name, turn in turns().items()}
    )
    more += [f"actor_rollout_ref.rollout.val_kwargs.{key}={value}" for key, value in SAMPLED.items()]
    more += [f"critic.{each}" for each in (f"model.path={work.model}", "use_dynamic_bsz=true", "enable=true")]
    more += ["critic.ppo_max_token_len_per_gpu=1024", "trainer.v1.trust_region.record=32"]
    more += ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=score"]
    more += [f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}"]
    more += ["actor_rollout_ref.model.use_fused_kernels=true"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    values = environment(work, CPPO_VERL=str(ROOT), PATH=path, HOME=str(folder), **EXTERNAL)  # of verl's ~/models
    commands = " ".join([pages.blocks("extending.md", "bash")[0].rstrip(), *map(shlex.quote, more)])
    shell = ["bash", "-euo", "pipefail", "-c", commands]
    ended_well(subprocess.run(shell, cwd=folder, env=values, capture_output=True, text=True, timeout=1500))
    return run


def with_lora(work: Work) -> Path:
    """A run of which only adapters are trained."""
    run = work.folder / "lora"
    more = _planned(run, {name: arguments(turn) for name, turn in LORA_FAMILIES.items()})
    more += [*LORA_FAMILIES["lora"].arguments[1:], "trainer.val_before_train=false"]
    ended_well(quickstart(work, *more, METHOD="cppo_topk", RUN=str(run), **EXTERNAL))
    return run


def _planned(run: Path, lines: Mapping[str, list[str]]) -> list[str]:
    """The overrides of a start that trains ``lines``; which agent loop asks is beside each."""
    file = run.with_suffix(".json")
    agents = {name: family.agent for name, family in FAMILIES.items()}
    file.write_text(json.dumps([{"overrides": line, "agent": agents.get(name)} for name, line in lines.items()]))
    return [*COMMON, f"+trainer.v1.rotating.turns={file}", f"trainer.total_training_steps={STEPS_EACH * len(lines)}"]
