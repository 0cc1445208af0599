"""What is shown of a run, and that a look at it never ends it."""

import json

import pytest

from cppo_verl.launch.progress import Progress


@pytest.fixture
def progress(tmp_path) -> Progress:
    """Of a run of seven steps whose config Hydra has written."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").write_text(
        "trainer: {total_training_steps: 7, copy: '${.total_training_steps}'}\n"
    )
    (tmp_path / ".hydra/overrides.yaml").write_text("[]")
    return Progress(
        tmp_path / "metrics", tmp_path / "console", tmp_path / ".hydra/config.yaml", tmp_path / "config.yaml"
    )


def log(progress: Progress, *lines: object) -> None:
    with progress.metrics.path.open("a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def test_a_line_a_step_and_every_alarm(progress, capsys):
    log(progress, {"step": 6, "data": {"critic/score/mean": 0.25, "actor/trust_region/masked_share": 0.015}}, '{"step')
    progress.console.path.write_bytes(b"\x1b[36m(pid=1) TRUST REGION ALARM: look\xff\nhalf a line")
    progress.tick()
    said = capsys.readouterr().out
    assert "config accepted" in said and "step 6/7  reward +0.250  masked 1.50%" in said and "ALARM: look" in said
    assert "total_training_steps: 7\n  copy: 7" in progress.config.read_text()
    assert not progress.ended
    log(progress, '": 7, "data": {"val-core/a/b/acc/mean@2": 0.5}}\n')
    progress.tick()
    assert progress.ended and capsys.readouterr().out.endswith("step 7/7  a/b 50.0%\n")


def test_numbers_that_are_not_finite_are_shown_as_such(progress, capsys):
    data = dict.fromkeys(("critic/score/mean", "val-core/x/acc/mean@1", "actor/trust_region/masked_share"))
    log(progress, {"step": 1, "data": data})
    progress.tick()
    assert "reward +nan  x nan%  masked nan%" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    ["what\n", "[]\n", "{}\n", '{"step": 1, "data": {"critic/score/mean": "x"}}\n', '{"step": "x", "data": {}}\n'],
)
def test_a_line_that_cannot_be_shown_is_told_once(progress, capsys, line):
    progress.tick()
    log(progress, line, line)
    for _ in range(3):
        progress.tick()
    assert capsys.readouterr().out.count("the run is incomplete, it goes on (") == 1
    log(progress, {"step": 7, "data": {}})
    progress.tick()
    assert progress.ended and "step 7/7" in capsys.readouterr().out


def test_the_config_is_kept_only_once_hydra_has_written_all_of_it(progress):
    (progress.hydra_config.with_name("overrides.yaml")).unlink()
    progress.tick()
    assert not progress.config.exists()


def test_a_config_that_cannot_be_kept_ends_nothing(progress, capsys):
    progress.config.mkdir()  # as where there are no write rights, for root too
    log(progress, {"step": 7, "data": {}})
    progress.tick()
    progress.tick()
    assert progress.ended and capsys.readouterr().out.count("it goes on (IsADirectoryError") == 1
