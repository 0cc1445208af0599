"""After any interruption of a checkpoint, verl's pointer names the newest one that is whole."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cppo_verl import presets
from cppo_verl.cli import main as command
from cppo_verl.integration import checks
from cppo_verl.launch import checkpoints, supervise
from cppo_verl.reporting import logs as reader
from tests import launch

from .saved import cut, save

POINTER = checkpoints.POINTER
COMMAND = [*launch.COMMAND, "trainer.n_gpus_per_node=1"]


@pytest.fixture
def root(tmp_path) -> Path:
    """Checkpoints of steps 2 and 4 from two ranks."""
    save(tmp_path, 2, ranks=2)
    save(tmp_path, 4, ranks=2)
    return tmp_path


def test_an_untroubled_run_is_left_alone(root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert checkpoints.settle(root) == (4, [])
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_new_run_starts_from_nothing(tmp_path):
    assert checkpoints.settle(tmp_path / "checkpoints") == (None, [])


def parts() -> list[str]:
    names = [f"{kind}_world_size_2_rank_{rank}.pt" for kind in ("model", "optim", "extra_state") for rank in (0, 1)]
    return ["data.pt", *(f"actor/{name}" for name in names), "actor/fsdp_config.json", "actor/huggingface/config.json"]


@pytest.mark.parametrize("kind", ["optim", "extra_state"])
def test_shards_that_are_gone_for_all_ranks_are_missed(root, kind):
    for shard in (root / "global_step_4/actor").glob(f"{kind}_*"):
        shard.unlink()
    assert checkpoints.settle(root, kinds=("model",)) == (4, [])  # unless the run reads the weights alone
    step, notes = checkpoints.settle(root)
    assert step == 2 and f"{kind}_world_size_2_rank_0.pt is missing" in notes[0]


@pytest.mark.parametrize("name", [".DS_Store", ".nfs000012", "hf", "notes.txt"])
def test_names_that_nobody_knows_do_not_hide_a_torn_checkpoint(root, name):
    for step in (2, 4):
        (root / f"global_step_{step}/actor/{name}").touch()
    cut(root / "global_step_4/actor/optim_world_size_2_rank_1.pt")
    assert checkpoints.settle(root)[0] == 2
    shutil.rmtree(root / "global_step_4/actor/huggingface")
    assert checkpoints.settle(root)[0] == 2


def test_other_ranks_are_refused_before_verl_looks_for_their_shards(root):
    before = (root / POINTER).read_text()
    with pytest.raises(checkpoints.CheckpointError, match=r"written by 2 ranks, and this run has 1 .*--fresh"):
        checkpoints.settle(root, ranks=1)
    assert (root / POINTER).read_text() == before and (root / "global_step_4/data.pt").exists()
    assert checkpoints.settle(root, ranks=2) == (4, [])


@pytest.mark.parametrize(("part", "damage"), [(part, damage) for part in parts() for damage in (cut, Path.unlink)])
def test_a_damaged_part_sends_the_run_to_the_checkpoint_before(root, part, damage):
    damage(root / "global_step_4" / part)
    step, notes = checkpoints.settle(root)
    assert step == 2
    assert (root / POINTER).read_text() == "2"
    assert any(Path(part).name in note for note in notes)
    assert not (root / "global_step_4" / "data.pt").exists()


@pytest.mark.parametrize(
    ("happened", "step"),
    [
        (lambda root: (root / POINTER).write_text(""), 4),  # a torn pointer
        (lambda root: (root / POINTER).write_text("four"), 4),
        (lambda root: (root / POINTER).unlink(), 4),
        (lambda root: (root / POINTER).write_text("2"), 2),  # the user's choice
        (lambda root: save(root, 6, ranks=2, pointer=False), 6),  # death between the last part and the pointer
        (lambda root: shutil.rmtree(root / "global_step_2/actor"), 4),  # death while an old one is deleted
        (lambda root: checkpoints.unseal(root / "global_step_4"), 2),  # while it is written over an older, whole one
    ],
)
def test_the_pointer_leads_to_the_newest_whole_checkpoint(root, happened, step):
    happened(root)
    assert checkpoints.settle(root)[0] == step
    assert (root / POINTER).read_text() == str(step)


def test_torn_first_checkpoint_starts_anew(tmp_path):
    shutil.rmtree(save(tmp_path, 2, pointer=False) / "actor" / "huggingface")
    step, notes = checkpoints.settle(tmp_path)
    assert step is None
    assert "global_step_2 is not whole" in notes[0]


def test_no_silent_start_from_step_0_where_there_was_a_checkpoint(tmp_path):
    cut(save(tmp_path, 2) / "actor" / "optim_world_size_1_rank_0.pt")
    with pytest.raises(checkpoints.CheckpointError, match=r"step 2[\s\S]*optim_world_size_1_rank_0.pt is cut off"):
        checkpoints.settle(tmp_path)


def test_other_engines_are_left_alone(root):
    (root / "global_step_6" / "actor" / "dist_ckpt").mkdir(parents=True)
    (root / POINTER).write_text("6")
    assert checkpoints.settle(root) == (None, [])
    assert (root / POINTER).read_text() == "6"


def record(step: int, **data: float) -> bytes:
    return json.dumps({"step": step, "data": data}, separators=(",", ":")).encode() + b"\n"


def test_the_metrics_of_a_checkpoint_that_was_not_logged_are_recovered(tmp_path):
    run, logs = tmp_path / "run", tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    folder = save(run / "checkpoints", 2)
    (folder / checkpoints.RECORD).write_bytes(record(2, reward=0.5))
    (logs / "metrics-20260101T000000Z.jsonl").write_bytes(record(1, reward=0.25) + b'{"step":2,"da')
    assert checkpoints.recover_record(run / "checkpoints", 2, logs, "20260101T000100Z")
    assert not checkpoints.recover_record(run / "checkpoints", 2, logs, "20260101T000200Z")
    # verl validates before it trains on, then takes step 3
    lines = record(2, **{"val-core/x/acc/mean@1": 1}) + record(3, reward=0.75)
    (logs / "metrics-20260101T000100Z.jsonl").write_bytes(lines)
    frame = reader.read_run(run).frame
    assert list(frame.index) == [1, 2, 3]
    assert list(frame["reward"]) == [0.25, 0.5, 0.75]
    assert frame["val-core/x/acc/mean@1"][2] == 1


def test_the_launcher_refuses_in_one_sentence(tmp_path, capfd):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    cut(save(run / "checkpoints", 2) / "data.pt")
    for more in ([], ["trainer.resume_mode=auto"], ["++trainer.resume_mode=auto"]):
        assert command.main(["run", str(run), *COMMAND, *more]) == 1
        errors = capfd.readouterr().err
        assert "data.pt is cut off" in errors and "--fresh" in errors and "Traceback" not in errors
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={run}/checkpoints/global_step_2"]
    assert command.main(["run", str(run), *COMMAND, *resume]) == 1
    assert "resume_from_path" in (errors := capfd.readouterr().err) and "data.pt is cut off" in errors
    for end in ("/", "/actor", "0"):  # verl would raise a ValueError of int(), or start anew
        assert command.main(["run", str(run), *COMMAND, resume[0], resume[1] + end]) == 1
        assert "resume_from_path" in capfd.readouterr().err


def test_the_launcher_knows_its_ranks(tmp_path, capfd):
    save(tmp_path / "run/checkpoints", 2, ranks=2)
    assert command.main(["run", str(tmp_path / "run"), *COMMAND]) == 1
    assert "written by 2 ranks, and this run has 1" in capfd.readouterr().err


@pytest.mark.parametrize("prefix", ["", "++"])
def test_a_user_who_does_not_resume_is_believed(tmp_path, monkeypatch, prefix):
    cut(save(tmp_path / "run/checkpoints", 2) / "data.pt")
    monkeypatch.setattr("sys.executable", shutil.which("true"))  # what verl does then is verl's
    assert command.main(["run", str(tmp_path / "run"), *COMMAND, f"{prefix}trainer.resume_mode=disable"]) == 0
    assert (tmp_path / "run/checkpoints" / POINTER).read_text() == "2"


def test_checkpoints_that_verl_will_not_delete_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.executable", shutil.which("true"))
    for step in (2, 4, 6):
        save(tmp_path / "run/checkpoints", step)
    assert command.main(["run", str(tmp_path / "run"), *COMMAND, "trainer.max_actor_ckpt_to_keep=2"]) == 0
    assert "3 lie there; verl deletes only what the same start wrote" in capsys.readouterr().out


def test_fresh_does_not_delete_a_run_that_is_going_on(tmp_path, capfd):
    run = tmp_path / "run"
    save(run / "checkpoints", 2)
    (run / "logs").mkdir()
    one_rank = "actor_rollout_ref.rollout.tensor_model_parallel_size=1"
    with supervise.lock(run):
        assert command.main(["run", "--fresh", str(run), *COMMAND, one_rank]) == 1
    assert "in use by another run" in capfd.readouterr().err
    assert (run / "checkpoints" / POINTER).exists()


def test_a_full_disk_is_said_in_one_sentence(tmp_path, capfd, monkeypatch):
    run = tmp_path / "run"
    save(run / "checkpoints", 2, pointer=False)
    monkeypatch.setattr("secrets.token_hex", lambda _: "full")
    os.symlink("/dev/full", run / "checkpoints" / f".{POINTER}.full.tmp")
    assert command.main(["run", str(run), *COMMAND]) == 1
    assert "No space left on device" in capfd.readouterr().err


@pytest.mark.parametrize("override", ["trainer.max_actor_ckpt_to_keep=1", "+trainer.remove_previous_ckpt_in_save=true"])
def test_deleting_the_last_checkpoint_before_the_next_is_refused(override):
    """verl removes the old shards before it writes the new data.pt and pointer."""
    with pytest.raises(checks.RunConfigError, match="max_actor_ckpt_to_keep to 2"):
        checks.require(presets.compose("cppo", ["actor_rollout_ref.rollout.n=8", override]))
