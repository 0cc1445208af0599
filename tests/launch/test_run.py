"""What the launcher adds to the user's command, for folders of any name."""

import glob
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cppo_verl.cli import main, run
from cppo_verl.errors import UserError
from cppo_verl.launch import overrides
from cppo_verl.launch.quoting import quote

from . import COMMAND
from .test_quoting import ODD


@pytest.fixture
def commands(monkeypatch) -> list:
    """What would have been supervised: the arguments of each call."""
    found: list = []
    monkeypatch.setattr(run.supervise, "run", lambda *given, **_: found.append(given))
    return found


@pytest.mark.filterwarnings("ignore:Glyph")  # of a letter that the figure's font has not
def test_any_run_directory_reaches_hydra_and_its_report(tmp_path, capsys):
    every, config = tmp_path / "".join(ODD), overrides.compose(COMMAND)
    (every / "logs").mkdir(parents=True)
    (every / "logs/metrics-20260101T000000Z.jsonl").write_text('{"step":1,"data":{"critic/score/mean":0.5}}\n')
    added = overrides.parse(run._own_overrides(every, every / "hydra/x", COMMAND, config))
    assert (added["trainer.default_local_dir"], added["hydra.run.dir"]) == (f"{every}/checkpoints", f"{every}/hydra/x")
    assert main.main(["report", str(every)]) == 0
    assert (every / "report/report.html").is_file() and str(every) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a,b", "it's", "a?b", "a*b", "[!a]", "**"])
def test_data_is_read_from_its_file_and_from_no_other(tmp_path, name):
    """``datasets`` reads patterns: of a folder ``a?b`` it would take what lies in ``a b`` as well."""
    for folder in (name, "a b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "x.parquet").touch()
    file = str(tmp_path / name / "x.parquet")
    config = OmegaConf.create({"data": {"train_files": file, "val_files": [file]}, "trainer": {"logger": ["file"]}})
    added = overrides.parse(run._own_overrides(tmp_path, tmp_path, [], config))
    for key in ("data.train_files", "data.val_files"):
        (read,) = added.get(key, [file])
        assert glob.glob(read) == [file]


def test_what_of_the_users_is_taken_over_is_said(tmp_path, capsys):
    given = [*COMMAND, "trainer.default_local_dir=/mine", "trainer.logger=[console,wandb]"]
    added = run._own_overrides(tmp_path, tmp_path, given, overrides.compose(given))
    assert overrides.parse(added)["trainer.logger"] == ["console", "wandb", "file"]
    said = capsys.readouterr().out
    assert "trainer.default_local_dir=/mine is not used" in said and "trainer.logger=['console', 'wandb']" in said


def test_what_is_not_watched_is_said(capsys, monkeypatch):
    with socket.socket() as cluster:
        cluster.bind(("127.0.0.1", 0))
        cluster.listen()
        address = f"127.0.0.1:{cluster.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert not run._is_alone(overrides.compose([*COMMAND, "trainer.nnodes=2"]))
    said = capsys.readouterr().out
    assert address in said and "not watched" in said and "--stall-timeout" in said
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(UserError, match="trainer.nnodes=2, and no Ray cluster is here"):
        run._is_alone(overrides.compose([*COMMAND, "trainer.nnodes=2"]))


@pytest.mark.parametrize(("name", "content"), [("logs", ""), ("git.json", None), (".lock", None)])
def test_a_run_directory_that_cannot_be_written_is_a_sentence(tmp_path, capfd, name, content):
    """A folder in the place of a file and the other way round, which root cannot write to either."""
    blocked = tmp_path / "run" / name
    blocked.mkdir(parents=True) if content is None else blocked.parent.mkdir()
    if content is not None:
        blocked.write_text(content)
    assert main.main(["run", str(tmp_path / "run"), *COMMAND]) == 1
    said = capfd.readouterr().err
    assert said.startswith("cppo-verl run: ") and str(blocked) in said and "Traceback" not in said


def test_hydras_flags_are_passed_on(tmp_path, commands):
    shutil.copytree(Path(overrides.__file__).parents[1] / "conf", tmp_path / "conf")
    (tmp_path / "conf/mine.yaml").write_text("defaults: [/ppo_trainer, _self_]\ntrainer: {n_gpus_per_node: 1}\n")
    flags = [f"--config-path={tmp_path / 'conf'}", "--config-name=mine"]
    search = f"hydra.searchpath=[{quote(Path(find_spec('verl').origin).parent / 'trainer/config')}]"
    assert main.main(["run", *flags, str(tmp_path / "run"), *COMMAND, search]) == 0
    command = commands[0][0]
    assert sorted(command[4:6]) == sorted(flags) and command[6 : 6 + len(COMMAND)] == COMMAND


@pytest.mark.parametrize(
    ("more", "logged", "status"),
    [
        (["trainer.total_training_steps=4"], [1, 2], 1),  # an epoch was shorter than meant
        (["trainer.total_training_steps=4", "trainer.val_only=true"], [0], 0),
        ([], [1, 2], 0),  # the epochs decide
    ],
)
def test_an_end_before_the_last_step_is_no_success(tmp_path, monkeypatch, capsys, more, logged, status):
    def trainer(command, run_dir, console, environment, on_tick, **_):
        hydra = Path(overrides.parse(command[4:])["hydra.run.dir"], ".hydra")
        hydra.mkdir(parents=True)
        config = overrides.compose([word for word in command[4:] if "hydra.run" not in word])
        OmegaConf.save(config, hydra / "config.yaml")
        (hydra / "overrides.yaml").touch()
        lines = [f'{{"step": {step}, "data": {{}}}}\n' for step in logged]
        Path(environment["VERL_FILE_LOGGER_PATH"]).write_text("".join(lines))
        on_tick()

    monkeypatch.setattr(run.supervise, "run", trainer)
    assert main.main(["run", str(tmp_path / "run"), *COMMAND, "trainer.total_epochs=1", *more]) == status
    said = capsys.readouterr().err
    assert not status or "step 2 of trainer.total_training_steps=4" in said and "total_epochs=1" in said


def test_a_user_without_a_home(monkeypatch, tmp_path, capsys, commands):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as for a user id that no file knows
    assert main.main(["run", str(tmp_path / "run"), "--check", *COMMAND[:2]]) == 1
    said = capsys.readouterr().err
    assert "actor_rollout_ref.model.path=~/" in said and "set HOME" in said
    assert main.main(["run", str(tmp_path / "run"), *COMMAND]) == 0
    assert commands[0][3]["HOME"] == str(tmp_path / "run/home") and (tmp_path / "run/home").is_dir()


def test_what_would_be_refused_deletes_nothing(tmp_path, capsys, commands):
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "run/kept").touch()
    wrong = ["--fresh", *COMMAND, "trainer.v1.trust_region.mode=later"]
    assert main.main(["run", str(tmp_path / "run"), *wrong]) == 2
    assert "is not one of sync" in capsys.readouterr().err
    assert (tmp_path / "run/kept").exists() and not commands
