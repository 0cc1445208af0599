"""What is shown of a run, and that a look at it never ends it."""

import json

import pytest

from cppo_verl.launch.progress import Progress


@pytest.fixture
def progress(tmp_path) -> Progress:
    """Of a run of seven steps whose config Hydra has written."""
    hydra = tmp_path / ".hydra"
    hydra.mkdir()
    (hydra / "config.yaml").write_text("trainer: {total_training_steps: 7, copy: '${.total_training_steps}'}\n")
    (hydra / "overrides.yaml").write_text("[]")
    return Progress(tmp_path / "metrics", tmp_path / "console", hydra / "config.yaml", tmp_path / "config.yaml")


def log(progress: Progress, *lines: object) -> None:
    with progress.metrics.open("a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    progress.tick()


def test_a_line_a_step_and_every_alarm(progress, capsys):
    progress.console.write_bytes(b"\x1b[36m(pid=1) TRUST REGION ALARM: look\xff\nhalf a line")
    nothing = dict.fromkeys(("critic/score/mean", "val-core/x/acc/mean@1", "actor/trust_region/masked_share"))
    data = {"critic/score/mean": 0.25, "actor/trust_region/masked_share": 0.015}
    log(progress, {"step": 5, "data": nothing}, {"step": 6, "data": data}, '{"step')
    said = capsys.readouterr().out
    for words in ("config accepted", "reward +nan  x nan%  masked nan%", "step 6/7  reward +0.250  masked 1.50%"):
        assert words in said
    assert "ALARM: look" in said and "total_training_steps: 7\n  copy: 7" in progress.config.read_text()
    assert not progress.ended
    log(progress, '": 7, "data": {"val-core/a/b/acc/mean@2": 0.5}}\n')
    assert progress.ended and capsys.readouterr().out.endswith("step 7/7  a/b 50.0%\n")


@pytest.mark.parametrize("line", ["what\n", "[]\n", '{"step": 1, "data": {"critic/score/mean": "x"}}\n'])
def test_a_line_that_cannot_be_shown_is_told_once(progress, capsys, line):
    log(progress, line, line)
    log(progress)
    assert capsys.readouterr().out.count("the run is incomplete, it goes on (") == 1
    log(progress, {"step": 7, "data": {}})
    assert progress.ended and "step 7/7" in capsys.readouterr().out


def test_a_config_that_is_not_written_or_cannot_be_kept_ends_nothing(progress, capsys):
    whole = progress.hydra_config.with_name("overrides.yaml")  # which Hydra writes last
    whole.unlink()
    log(progress)
    assert not progress.config.exists()
    whole.touch()
    progress.config.mkdir()  # as where there are no write rights, for root too
    log(progress, {"step": 7, "data": {}})
    log(progress)
    assert progress.ended and capsys.readouterr().out.count("it goes on (IsADirectoryError") == 1
