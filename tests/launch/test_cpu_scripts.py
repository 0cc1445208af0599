"""quickstart.sh and real_model.sh on their common body: what they ask for, in an environment that only prints it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.launch.overrides import parse
from tests import ROOT

STAND_IN = '#!/bin/bash\nprintf \'%s\\n\' "${0##*/} threads=$OMP_NUM_THREADS extra=$CPPO_EXTRA" "$@"\n'
ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of the scripts alone, whose environment prints what it is asked to do."""
    scripts, programs = tmp_path / "root/run_scripts", tmp_path / "env/bin"
    programs.mkdir(parents=True)
    scripts.mkdir(parents=True)
    for name in ("cppo-verl", "python"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    for name in ("quickstart.sh", "real_model.sh", "cpu_run.sh", "quote.sh"):
        shutil.copy(ROOT / "run_scripts" / name, scripts / name)
    (scripts / "setup_env.sh").write_text(f'#!/bin/bash\necho "extra=$CPPO_EXTRA" >&2\necho {tmp_path}/env\n')
    (scripts / "setup_env.sh").chmod(0o755)
    return tmp_path / "root"


def said(root: Path, script: str, *arguments: str, **values: str) -> tuple[list[list[str]], str]:
    """The commands that a script starts, as lists of words, and what it said on stderr."""
    clean = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME")}
    command = ["bash", str(root / "run_scripts" / script), *arguments]
    done = subprocess.run(command, env={**clean, **values}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    commands: list[list[str]] = []
    for line in done.stdout.splitlines():
        if " threads=" in line:
            commands.append([line.split(" threads=")[0]])
        else:
            commands[-1].append(line)
    return commands, done.stderr


def overrides(commands: list[list[str]]) -> dict[str, str]:
    """Of the command that starts the run."""
    (run,) = [words for words in commands if words[:2] == ["cppo-verl", "run"] and "--glance" not in words]
    return dict(word.split("=", 1) for word in run[2:] if "=" in word)


def test_the_quickstart_asks_for_what_it_always_did(root):
    commands, stderr = said(
        root, "quickstart.sh", "a.b=1", METHOD="dppo_tv", MODE="sync", SEED="2", RANKS="2", FRESH="1"
    )
    assert stderr == "extra=\n"
    assert [words[:3] for words in commands] == [
        ["cppo-verl", "run", "--glance"],
        ["python", "-m", "data_prep.arithmetic"],
        ["python", "-m", "data_prep.tiny_qwen3"],
        ["cppo-verl", "run", "--fresh"],
        ["cppo-verl", "report", f"{root}/runs/quickstart-dppo_tv-sync-seed2-ranks2"],
    ]
    given = overrides(commands)
    assert (
        given["+trust_region"] == "dppo_tv" and given["a.b"] == "1" and given["trainer.v1.trust_region.mode"] == "sync"
    )
    wanted = {
        "data.train_files": f"{root}/runs/arithmetic-seed2/train.parquet",
        "data.train_batch_size": "32",
        "reward.custom_reward_function.path": f"{root}/data_prep/arithmetic_reward.py",
        "actor_rollout_ref.model.path": f"{root}/runs/tiny-qwen3-seed2",
        ACTOR + "optim.lr": "3e-4",
        ACTOR + "ppo_mini_batch_size": "4",
        ROLLOUT + "n": "8",
        "trainer.total_training_steps": "30",
        "trainer.experiment_name": "dppo_tv",
    }
    assert {key: given.get(key) for key in wanted} == wanted
    assert given["trainer.validation_data_dir"] == f"{commands[-1][2]}/validations"


def test_the_real_model_goes_through_its_stages(root):
    commands, stderr = said(root, "real_model.sh")
    assert stderr == "extra=real\n"
    assert [words[:3] for words in commands] == [
        ["cppo-verl", "run", "--glance"],
        ["python", "-m", "data_prep.reasoning_gym_data"],
        ["python", "-m", "data_prep.smollm2"],
        ["python", "-m", "data_prep.warm_start"],
        ["cppo-verl", "run", commands[4][2]],
        ["cppo-verl", "report", commands[4][2]],
        ["python", "-m", "data_prep.validations"],
    ]
    given, run = overrides(commands), Path(commands[4][2])
    assert run.name.startswith("real_model-smollm2-135m-instruct-") and run.name.endswith("-cppo-seed0-ranks1")
    assert int(given["data.train_batch_size"]) // int(given[ACTOR + "ppo_mini_batch_size"]) == 4
    assert given["trainer.validation_data_dir"] == f"{run}/validations"
    assert given["actor_rollout_ref.model.path"] == commands[3][commands[3].index("--out") + 1]
    assert commands[3][commands[3].index("--data") + 1] == str(Path(given["data.train_files"]).parent)


def test_what_it_asks_for_is_a_run_that_could_start(root):
    """The composed config of the default command passes the start check."""
    commands, _ = said(root, "real_model.sh")
    words = [word for word in commands[4][3:] if not word.startswith("+trust_region=")]
    checks.require(presets.compose("cppo", words))


def test_other_tasks_and_models_have_folders_of_their_own(root, tmp_path):
    (tmp_path / "mine").mkdir()
    default, _ = said(root, "real_model.sh")
    other, _ = said(root, "real_model.sh", TASKS="gcd", MODEL=f"{tmp_path}/mine/../mine", WARM="0", SEED="1")
    assert not any("data_prep.smollm2" in words or "data_prep.warm_start" in words for words in other)
    assert overrides(other)["actor_rollout_ref.model.path"] == f"{tmp_path}/mine"
    assert overrides(other)["data.train_files"] != overrides(default)["data.train_files"]
    assert "real_model-mine-" in other[-2][-1] and "seed1" in other[-2][-1]
    longer, _ = said(root, "real_model.sh", RESPONSE_TOKENS="48")
    assert overrides(longer)["actor_rollout_ref.model.path"] != overrides(default)["actor_rollout_ref.model.path"]
    seed, _ = said(root, "real_model.sh", SEED="1")
    assert overrides(seed)["actor_rollout_ref.model.path"] == overrides(default)["actor_rollout_ref.model.path"]


def test_folders_of_any_name_are_quoted(root, tmp_path):
    """A repository, data and model below a name that Hydra would misread."""
    odd = tmp_path / "a b=ü,it's (x)#2~李[1]"
    shutil.move(root, odd)
    for script, model in (("quickstart.sh", "tiny-qwen3-seed0"), ("real_model.sh", "mine")):
        commands, _ = said(odd, script, WARM="0", MODEL=str(odd)) if model == "mine" else said(odd, script)
        (run,) = [words for words in commands if words[:2] == ["cppo-verl", "run"] and "--glance" not in words]
        values = parse(word for word in run[2:] if "=" in word and not word.startswith(str(odd))).values
        assert Path(values["data.train_files"]).parents[1] == odd / "runs"
        assert values["actor_rollout_ref.model.path"] in (str(odd), f"{odd}/runs/{model}")
        assert Path(values["reward.custom_reward_function.path"]).parent == odd / "data_prep"
        assert values["trainer.validation_data_dir"] == f"{run[2]}/validations"


def test_it_stops_where_it_is_told(root):
    prepared, _ = said(root, "real_model.sh", PLAN="1")
    assert prepared[-1][:3] == ["python", "-m", "data_prep.warm_start"]
    listed, _ = said(root, "real_model.sh", TASKS="list")
    assert listed[-1][-1] == "list"


def test_the_body_alone_says_whose_it_is(root):
    done = subprocess.run(["bash", str(root / "run_scripts/cpu_run.sh")], capture_output=True, text=True)
    assert done.returncode == 2 and "start quickstart.sh or real_model.sh" in done.stderr
