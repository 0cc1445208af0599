"""quickstart.sh and real_model.sh on their common body: what they ask for, in an environment that only prints it.

Repository, data and model lie below a name that Hydra would misread.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cppo_verl import presets
from cppo_verl.integration import checks
from cppo_verl.launch.overrides import parse
from tests import ROOT

STAND_IN = '#!/bin/bash\nprintf \'%s\\n\' "${0##*/} threads=$OMP_NUM_THREADS" "$@"\n'
MODEL, TRAIN = "actor_rollout_ref.model.path", "data.train_files"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of the scripts alone, whose environment prints what it is asked to do."""
    root, programs = tmp_path / "a b=ü,it's (x)#2~李[1]", tmp_path / "env/bin"
    scripts = root / "run_scripts"
    programs.mkdir(parents=True)
    scripts.mkdir(parents=True)
    for name in ("quickstart.sh", "real_model.sh", "cpu_run.sh", "quote.sh"):
        shutil.copy(ROOT / "run_scripts" / name, scripts / name)
    setup = f'#!/bin/bash\necho "extra=$CPPO_EXTRA" >&2\necho {tmp_path}/env\n'
    stand_ins = {programs / "cppo-verl": STAND_IN, programs / "python": STAND_IN, scripts / "setup_env.sh": setup}
    for program, text in stand_ins.items():
        program.write_text(text)
        program.chmod(0o755)
    return root


def said(root: Path, script: str, *arguments: str, **values: str) -> tuple[list[list[str]], dict[str, Any], str]:
    """The commands that a script starts, as lists of words; the run's overrides, as Hydra reads them; stderr."""
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
    runs = [words for words in commands if words[:2] == ["cppo-verl", "run"] and "--glance" not in words]
    return commands, parse(word for words in runs for word in words[3:] if "=" in word and word[0] != "/"), done.stderr


def test_the_quickstart_asks_for_what_it_always_did(root):
    values = {"METHOD": "dppo_tv", "MODE": "sync", "SEED": "2", "RANKS": "2", "FRESH": "1"}
    commands, given, stderr = said(root, "quickstart.sh", "a.b=1", **values)
    assert stderr == "extra=\n"
    assert [words[:3] for words in commands] == [
        ["cppo-verl", "run", "--glance"],
        ["python", "-m", "data_prep.arithmetic"],
        ["python", "-m", "data_prep.tiny_qwen3"],
        ["cppo-verl", "run", "--fresh"],
        ["cppo-verl", "report", f"{root}/runs/quickstart-dppo_tv-sync-seed2-ranks2"],
    ]
    wanted = {
        "trust_region": "dppo_tv",
        "a.b": 1,
        "trainer.v1.trust_region.mode": "sync",
        TRAIN: f"{root}/runs/arithmetic-seed2/train.parquet",
        MODEL: f"{root}/runs/tiny-qwen3-seed2",
        "trainer.total_training_steps": 30,
        "reward.custom_reward_function.path": f"{root}/data_prep/arithmetic_reward.py",
        "trainer.validation_data_dir": f"{commands[-1][2]}/validations",
    }
    assert {key: given.get(key) for key in wanted} == wanted


def test_the_real_model_goes_through_its_stages(root):
    commands, given, stderr = said(root, "real_model.sh")
    run = commands[4][2]
    assert stderr == "extra=real\n"
    assert [words[:3] for words in commands] == [
        ["cppo-verl", "run", "--glance"],
        ["python", "-m", "data_prep.reasoning_gym_data"],
        ["python", "-m", "data_prep.smollm2"],
        ["python", "-m", "data_prep.warm_start"],
        ["cppo-verl", "run", run],
        ["cppo-verl", "report", run],
        ["python", "-m", "data_prep.validations"],
    ]
    assert Path(run).name.startswith("real_model-smollm2-135m-instruct-") and run.endswith("-cppo-seed0-ranks1")
    assert given["trainer.validation_data_dir"] == f"{run}/validations"
    warm = dict(zip(commands[3], commands[3][1:], strict=False))
    assert (warm["--out"], warm["--data"]) == (given[MODEL], str(Path(given[TRAIN]).parent))
    # it could start
    checks.require(presets.compose("cppo", [word for word in commands[4][3:] if not word.startswith("+trust_region=")]))
    # other tasks and models have folders of their own
    (root / "mine").mkdir()
    other, own, _ = said(root, "real_model.sh", TASKS="gcd", MODEL=f"{root}/mine/../mine", WARM="0", SEED="1")
    assert not any("data_prep.smollm2" in words or "data_prep.warm_start" in words for words in other)
    assert own[MODEL] == f"{root}/mine" and own[TRAIN] != given[TRAIN]
    # it stops where it is told
    assert said(root, "real_model.sh", PLAN="1")[0][-1][:3] == ["python", "-m", "data_prep.warm_start"]
